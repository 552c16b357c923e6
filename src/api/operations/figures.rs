//! Operations in health and in the metrics. The sources are memory and one query of the store with a time limit.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::super::Context;
use crate::clock::{self, Steady};
use crate::operation::Operation;
use crate::reason::Code;
use crate::wire::OperationsHealth;

/// How long an operation may be open past its time limit before health reports it. In that time the operation may
/// still undo what it began.
const LATE: SignedDuration = SignedDuration::from_secs(30);

/// The period in which failed operations are counted.
const RECENT: SignedDuration = SignedDuration::from_hours(1);

/// The time limit for the store's answer, after which the number of failed operations is unknown.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

type ByLabels = Family<[(&'static str, &'static str); 2], Gauge<f64, AtomicU64>>;

/// Returns what health shows, and its problem if there is one.
pub(in crate::api) async fn health(context: &Context) -> (OperationsHealth, Option<(Code, String)>) {
    let open = context.inner.operations.open();
    let late: Vec<_> = open.iter().filter(|operation| is_late(operation, Steady::now())).collect();
    let since = clock::wall().checked_sub(RECENT).unwrap_or(Timestamp::MIN);
    let failed = tokio::time::timeout(ANSWER_LIMIT, context.inner.store.operations_failed_since(since)).await;
    let health = OperationsHealth {
        open: open.len(),
        oldest_at: open.iter().map(|operation| operation.created_at).min(),
        late: late.len(),
        failed_last_hour: failed.ok().and_then(Result::ok),
    };
    let problem = late.first().map(|first| {
        let (count, id, kind) = (late.len(), first.id, first.request.kind());
        let message =
            format!("{count} operation(s) have not ended although their time is over; one of them: {id} ({kind})");
        (Code::OperationsLate, message)
    });
    (health, problem)
}

fn is_late(operation: &Operation, now: Steady) -> bool {
    now >= operation.deadline.after(LATE)
}

/// Adds the metrics of open operations.
pub(in crate::api) fn figures(registry: &mut Registry, open: &[Arc<Operation>], now: Timestamp) {
    let by = ByLabels::default();
    for operation in open {
        let labels = [("type", operation.request.kind().as_str()), ("state", operation.state.as_str())];
        by.get_or_create(&labels).inc_by(1.0);
    }
    registry.register("operations_open", "Operations that have not ended, by type and state", by);
    let oldest = open.iter().map(|operation| now.duration_since(operation.created_at)).max();
    let age = Gauge::<f64, AtomicU64>::default();
    age.set(oldest.map_or(0.0, |age| age.as_secs_f64().max(0.0)));
    registry.register(
        "operations_oldest_open_seconds",
        "How long the oldest of them has been open; 0: there is none",
        age,
    );
}
