//! Snapshots in CloudStack that callers keep track of here. attachd makes no snapshot and asks CloudStack for none: it
//! keeps what it is told, one snapshot for each volume, also when the volume is detached.

use std::collections::HashMap;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::body::{JsonBody, VolumePath};
use super::super::error::ApiError;
use super::super::{Context, Ctx, unless_silent};
use super::{PathText, mappings};
use crate::clock;
use crate::identity::VolumeId;
use crate::reason::Code;
use crate::store::Change;
use crate::volume::{Snapshot, SnapshotNews};
use crate::wire::ErrorBody;

/// The most volumes whose snapshot is kept.
const MOST: u64 = 10_000;

/// The longest text, in characters.
const LONGEST: usize = 191;

/// A snapshot to keep track of.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = PredecessorSnapshot)]
#[serde(default)]
pub(super) struct NewSnapshot {
    /// The volume's UUID.
    #[schema(required = true, value_type = VolumeId)]
    volume_uuid: Option<String>,
    /// The caller's own name for the VM.
    #[schema(required = true, value_type = String, min_length = 1, max_length = 191)]
    vm_context_id: Option<String>,
    /// CloudStack's id of the snapshot.
    #[schema(required = true, value_type = String, min_length = 1, max_length = 191)]
    snapshot_id: Option<String>,
    #[schema(max_length = 191)]
    snapshot_name: Option<String>,
    /// By default `ready`.
    #[schema(max_length = 191)]
    snapshot_status: Option<String>,
}

/// What has changed of a snapshot. What is left out stays.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = PredecessorSnapshotNews)]
#[serde(default)]
#[allow(clippy::struct_field_names, reason = "the predecessor's names")]
pub(super) struct Changed {
    #[schema(min_length = 1, max_length = 191)]
    snapshot_id: Option<String>,
    #[schema(max_length = 191)]
    snapshot_name: Option<String>,
    #[schema(max_length = 191)]
    snapshot_status: Option<String>,
}

/// A snapshot is kept track of.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PredecessorTracked)]
pub(super) struct Tracked {
    message: &'static str,
    volume_uuid: VolumeId,
    snapshot_id: String,
    vm_context_id: String,
}

/// A snapshot was changed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PredecessorUpdated)]
pub(super) struct Updated {
    message: &'static str,
    volume_uuid: VolumeId,
}

/// The snapshots of a VM's volumes.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PredecessorSnapshots)]
pub(super) struct OfContext {
    vm_context_id: String,
    /// `null` without any.
    snapshots: Option<Vec<OfVolume>>,
    count: usize,
}

/// The snapshot of a volume.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PredecessorSnapshotOfVolume)]
pub(super) struct OfVolume {
    volume_uuid: VolumeId,
    vm_context_id: String,
    /// Empty while the volume is not attached.
    device_path: String,
    /// `oma` or `failover`; empty while the volume is not attached.
    operation_mode: &'static str,
    snapshot_id: String,
    #[schema(value_type = String, format = DateTime)]
    snapshot_created_at: Timestamp,
    snapshot_status: String,
}

/// The snapshots of a VM's volumes are kept no more.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PredecessorCleared)]
#[allow(clippy::struct_field_names, reason = "the predecessor's names")]
pub(super) struct Cleared {
    message: &'static str,
    vm_context_id: String,
    snapshots_cleared: usize,
}

fn needed(field: &str, text: Option<String>) -> Result<String, ApiError> {
    let text = fitting(field, text)?.unwrap_or_default();
    if text.is_empty() {
        return Err(ApiError::of(Code::InvalidBody, format!("{field}: it is missing or empty")));
    }
    Ok(text)
}

fn fitting(field: &str, text: Option<String>) -> Result<Option<String>, ApiError> {
    if text.as_deref().is_some_and(|text| text.chars().count() > LONGEST) {
        return Err(ApiError::of(Code::InvalidBody, format!("{field}: it takes at most {LONGEST} characters")));
    }
    Ok(text)
}

async fn write(context: &Context, change: Change) -> Result<(), ApiError> {
    Ok(unless_silent(context, context.inner.store.write(vec![change])).await??)
}

/// Keeps track of a volume's snapshot, in place of an earlier one.
#[utoipa::path(post, path = "/api/v1/snapshots/track", operation_id = "predecessorTrackSnapshot", tag = "predecessor", request_body = NewSnapshot, responses(
    (status = 200, body = Tracked, description = "On record, durably"),
    (status = 400, body = ErrorBody, description = "The body does not parse, or a field is missing or too long"),
    (status = 500, body = ErrorBody, description = "It is not on record: the store cannot be written, or too many are kept")))]
pub(super) async fn track(
    State(context): Ctx,
    JsonBody(new): JsonBody<NewSnapshot>,
) -> Result<Json<Tracked>, ApiError> {
    let snapshot = Snapshot {
        volume: needed("volume_uuid", new.volume_uuid)?.parse()?,
        vm_context: needed("vm_context_id", new.vm_context_id)?,
        id: needed("snapshot_id", new.snapshot_id)?,
        name: fitting("snapshot_name", new.snapshot_name)?.unwrap_or_default(),
        status: fitting("snapshot_status", new.snapshot_status)?.unwrap_or_else(|| "ready".to_owned()),
        created_at: clock::whole(clock::wall()),
    };
    let store = &context.inner.store;
    if store.snapshot(snapshot.volume).await?.is_none() && store.snapshots_count().await? >= MOST {
        let text = format!("the snapshots of {MOST} volumes are kept, and no more; clear those of VMs that are gone");
        return Err(ApiError::of(Code::Failed, text));
    }
    let (volume, id, context_id) = (snapshot.volume, snapshot.id.clone(), snapshot.vm_context.clone());
    write(&context, Change::Track(Box::new(snapshot))).await?;
    let message = "Volume snapshot tracked successfully";
    Ok(Json(Tracked { message, volume_uuid: volume, snapshot_id: id, vm_context_id: context_id }))
}

/// Changes what is kept of a volume's snapshot.
#[utoipa::path(put, path = "/api/v1/snapshots/{volume_id}", operation_id = "predecessorUpdateSnapshot", tag = "predecessor",
    params(("volume_id" = VolumeId, Path)), request_body = Changed, responses(
    (status = 200, body = Updated, description = "On record, durably"),
    (status = 400, body = ErrorBody, description = "The body does not parse, a field is too long, or the path has no volume id"),
    (status = 404, body = ErrorBody, description = Code::NoSnapshot.name()),
    (status = 500, body = ErrorBody, description = "It is not on record: the store cannot be written")))]
pub(super) async fn update(
    State(context): Ctx,
    VolumePath(volume): VolumePath,
    JsonBody(changed): JsonBody<Changed>,
) -> Result<Json<Updated>, ApiError> {
    let news = SnapshotNews {
        id: changed.snapshot_id.map(|id| needed("snapshot_id", Some(id))).transpose()?,
        name: fitting("snapshot_name", changed.snapshot_name)?,
        status: fitting("snapshot_status", changed.snapshot_status)?,
    };
    if context.inner.store.snapshot(volume).await?.is_none() {
        return Err(ApiError::of(Code::NoSnapshot, format!("no snapshot of volume {volume} is kept track of")));
    }
    write(&context, Change::Retrack(volume, news)).await?;
    Ok(Json(Updated { message: "Volume snapshot updated successfully", volume_uuid: volume }))
}

/// Shows the snapshots of a VM's volumes.
#[utoipa::path(get, path = "/api/v1/snapshots/vm/{vm_context_id}", operation_id = "predecessorSnapshots", tag = "predecessor",
    params(("vm_context_id" = String, Path)), responses((status = 200, body = OfContext)))]
pub(super) async fn of_context(
    State(context): Ctx,
    PathText(vm_context_id): PathText,
) -> Result<Json<OfContext>, ApiError> {
    let kept = context.inner.store.snapshots_of(&vm_context_id).await?;
    let volumes = kept.iter().map(|snapshot| snapshot.volume).collect();
    let mut places: HashMap<_, _> = mappings::of_volumes(&context, volumes).await?;
    let snapshots: Vec<_> = kept
        .into_iter()
        .map(|snapshot| {
            let (device_path, operation_mode) = places.remove(&snapshot.volume).unwrap_or_default();
            OfVolume {
                volume_uuid: snapshot.volume,
                vm_context_id: snapshot.vm_context,
                device_path,
                operation_mode,
                snapshot_id: snapshot.id,
                snapshot_created_at: snapshot.created_at,
                snapshot_status: snapshot.status,
            }
        })
        .collect();
    let count = snapshots.len();
    Ok(Json(OfContext { vm_context_id, snapshots: (count > 0).then_some(snapshots), count }))
}

/// Keeps track of the snapshots of a VM's volumes no more. The snapshots themselves stay in CloudStack.
#[utoipa::path(delete, path = "/api/v1/snapshots/vm/{vm_context_id}", operation_id = "predecessorClearSnapshots", tag = "predecessor",
    params(("vm_context_id" = String, Path)), responses(
    (status = 200, body = Cleared),
    (status = 500, body = ErrorBody, description = "The store cannot be written")))]
pub(super) async fn clear(State(context): Ctx, PathText(vm_context_id): PathText) -> Result<Json<Cleared>, ApiError> {
    let count = context.inner.store.snapshots_of(&vm_context_id).await?.len();
    write(&context, Change::Untrack(vm_context_id.clone())).await?;
    let message = "VM volume snapshots cleared successfully";
    Ok(Json(Cleared { message, vm_context_id, snapshots_cleared: count }))
}
