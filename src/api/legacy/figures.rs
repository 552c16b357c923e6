//! The predecessor's metrics, with true numbers. `/metrics` has more.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::super::Ctx;
use super::super::error::ApiError;
use crate::clock;
use crate::engine::world::World;
use crate::operation::{Operation, OperationState, predecessor};
use crate::store::OperationFilter;
use crate::volume::State as VolumeState;

/// The most operations that are counted, the newest first.
const COUNTED: u32 = 1000;

/// Figures of the newest operations, and of the volumes that are served.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PredecessorMetrics)]
pub(super) struct Figures {
    #[schema(value_type = String, format = DateTime)]
    timestamp: Timestamp,
    /// At most 1000: the newest are counted.
    total_operations: usize,
    /// Operations that have not ended.
    pending_operations: usize,
    /// Volumes whose disk is here and proven.
    active_mappings: usize,
    operations_by_type: BTreeMap<&'static str, u64>,
    operations_by_status: BTreeMap<&'static str, u64>,
    /// From the request to the end, of those that were completed.
    average_response_time_ms: f64,
    /// How many of those that have ended have failed.
    error_rate_percent: f64,
}

/// Shows the predecessor's metrics.
#[utoipa::path(get, path = "/api/v1/metrics", operation_id = "predecessorMetrics", tag = "predecessor",
    responses((status = 200, body = Figures)))]
pub(super) async fn show(State(context): Ctx) -> Result<Json<Figures>, ApiError> {
    let filter = OperationFilter { limit: Some(COUNTED), ..OperationFilter::default() };
    let operations = context.inner.operations.list(filter).await?;
    let look = |world: &World| {
        let has_disk = [VolumeState::Matched, VolumeState::Exporting, VolumeState::Ready];
        let counts = world.counts();
        has_disk.iter().filter_map(|state| counts.get(state)).sum::<usize>()
    };
    let mappings = context.inner.engine.read(look).await?;
    Ok(Json(counted(&operations, mappings, clock::wall())))
}

fn counted(operations: &[Operation], active_mappings: usize, timestamp: Timestamp) -> Figures {
    let (mut by_type, mut by_status) = (BTreeMap::new(), BTreeMap::new());
    for operation in operations {
        *by_type.entry(predecessor::kind(&operation.request).as_str()).or_default() += 1;
        *by_status.entry(operation.state.as_str()).or_default() += 1;
    }
    let in_state = |state| operations.iter().filter(move |operation| operation.state == state);
    let open = in_state(OperationState::Pending).count() + in_state(OperationState::Executing).count();
    let times = in_state(OperationState::Completed).filter_map(|operation| {
        let ended = operation.completed_at?;
        Some(ended.duration_since(operation.created_at).as_secs_f64() * 1000.0)
    });
    let times: Vec<f64> = times.collect();
    let failed = in_state(OperationState::Failed).count();
    Figures {
        timestamp,
        total_operations: operations.len(),
        pending_operations: open,
        active_mappings,
        operations_by_type: by_type,
        operations_by_status: by_status,
        average_response_time_ms: share(times.iter().sum::<f64>().max(0.0), times.len()),
        error_rate_percent: share(100.0 * number(failed), operations.len() - open),
    }
}

fn share(sum: f64, count: usize) -> f64 {
    if count == 0 { 0.0 } else { sum / number(count) }
}

/// At most [`COUNTED`].
fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
