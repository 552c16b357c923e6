//! Metrics for Prometheus, computed at each request.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

use super::error::ApiError;
use super::health::counts;
use super::{Context, Ctx};
use crate::device::monitor::SocketStats;
use crate::engine::udevd::Udevd;
use crate::engine::world::World;
use crate::export::server::Server;
use crate::reason::Code;
use crate::store::Following;

type ByLabel = Family<Vec<(&'static str, &'static str)>, Gauge<f64, AtomicU64>>;

/// The Prometheus text format.
#[utoipa::path(get, path = "/metrics", operation_id = "showMetrics", responses((status = 200, body = String, content_type = "application/openmetrics-text")))]
pub(super) async fn show(State(context): Ctx) -> Result<impl IntoResponse, ApiError> {
    let text = encoded(&context).await?;
    Ok(([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text))
}

async fn encoded(context: &Context) -> Result<String, ApiError> {
    let look = |world: &World| {
        let up = matches!(world.server, Some(Server::Up { .. }));
        let silent = matches!(world.ear.udevd_is(), Udevd::Silent(_));
        (counts(world), world.table.all().count(), up, (silent, world.held_up().len()), world.resyncs.clone())
    };
    let (volumes, disks, up, (silent, held_up), resyncs) = context.inner.engine.read(look).await?;
    let pulse = context.inner.store.pulse().await;
    let mut registry = Registry::with_prefix("attachd");
    let by_state = ByLabel::default();
    for (state, count) in volumes {
        by_state.get_or_create(&vec![("state", state)]).set(f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
    }
    registry.register("volumes", "Volumes by state", by_state);
    let mut gauge = |name: &str, help: &str, value: u64| registry.register(name, help, ConstGauge::new(value));
    gauge("disks", "Whole disks that are present", disks as u64);
    gauge("backend_up", "1 while the NBD server runs", u64::from(up));
    gauge(
        "udevd_silent",
        "1 while an event of udevd is overdue for more than 10 s and no other event arrives from it",
        u64::from(silent),
    );
    gauge(
        "udevd_held_up",
        "Disks whose event of udevd is overdue for more than 10 s while others arrive",
        held_up as u64,
    );
    gauge("store_failing", "1 while nothing can be written to the store", u64::from(pulse.failure.is_some()));
    by_target(&mut registry, &pulse.followers);
    if let Some(access) = &context.inner.cloud {
        super::cloud::figures(&mut registry, access);
    }
    super::operations::figures(&mut registry, &context.inner.operations.open(), crate::clock::wall());
    let turns = context.inner.engine.turns().histogram();
    registry.register("engine_turn_seconds", "How long each turn of the engine took", turns);
    let mut counter = |name: &str, help: &str, value: u64| registry.register(name, help, ConstCounter::new(value));
    counter("resyncs", "How often all disks were read", resyncs.count);
    counter("losses", "How often events were lost", resyncs.losses);
    for (group, stats) in [("udev", &context.inner.monitor.udev), ("kernel", &context.inner.monitor.kernel)] {
        let sub = registry.sub_registry_with_label(("group".into(), group.into()));
        figures(sub, stats);
    }
    let mut text = String::new();
    encode(&mut text, &registry).map_err(|error| ApiError::of(Code::MetricsFailed, error.to_string()))?;
    Ok(text)
}

/// Metrics of the predecessor's tables, one sample for each target database.
fn by_target(registry: &mut Registry, followers: &[Following]) {
    let (owed, refused) = (ByLabel::default(), ByLabel::default());
    let number = |count: u64| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    for Following { name, owed: count, .. } in followers {
        // An unknown number gets no sample.
        if let Some(count) = count {
            let label = vec![("target", *name)];
            owed.get_or_create(&label).set(number(count.records));
            refused.get_or_create(&label).set(number(count.set_aside));
        }
    }
    let help = "Volumes and operations whose rows in the predecessor's tables are still to be written";
    registry.register("projection_owed", help, owed);
    registry.register("projection_refused", "Volumes and operations whose rows the database refuses", refused);
}

fn figures(registry: &mut Registry, stats: &SocketStats) {
    let mut counter = |name: &str, help: &str, value: u64| registry.register(name, help, ConstCounter::new(value));
    counter("events", "Disk events received", stats.events.load(Ordering::Relaxed));
    counter("overruns", "How often the socket's buffer overran", stats.overruns.load(Ordering::Relaxed));
    counter("drops", "Datagrams that the kernel dropped", stats.drops().unwrap_or(0));
}
