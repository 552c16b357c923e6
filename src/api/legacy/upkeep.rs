//! Cleaning up, in the predecessor's words. attachd takes its own exports away by itself when their volumes go, and
//! leaves alone what it did not make. So nothing is left to be cleaned up by a caller: what is there beside attachd's
//! exports is named, and a person removes it.

use std::time::Instant;

use axum::body::Bytes;
use axum::extract::State;
use axum::{Extension, Json};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::body::JsonBody;
use super::super::error::ApiError;
use super::super::serve::Peer;
use super::super::{Context, Ctx, devices};
use crate::clock;
use crate::engine::world::World;
use crate::reason::Code;
use crate::wire::{ErrorBody, whole_or_negative};

/// What to clean up.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = PredecessorTidy)]
#[serde(default)]
pub(super) struct Tidy {
    /// By default true.
    dry_run: Option<bool>,
}

/// What to clean up by its age.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = PredecessorTidyByAge)]
pub(super) struct TidyByAge {
    #[serde(default, deserialize_with = "whole_or_negative")]
    #[schema(required = true, value_type = i64)]
    max_age_hours: Option<i64>,
    /// By default true.
    #[serde(default)]
    dry_run: Option<bool>,
}

/// What there is beside attachd's exports, and what was done about it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PredecessorTidied)]
pub(super) struct Tidied {
    /// attachd's exports.
    total_exports: usize,
    /// Names in the NBD server's folders that attachd did not make.
    orphaned_exports: usize,
    /// Always 0.
    cleaned_exports: usize,
    failed_cleanups: usize,
    /// The first ten of them.
    orphaned_export_details: Vec<Orphan>,
    /// Without a dry run: why each of them was left alone.
    cleanup_errors: Vec<String>,
    config_files_validated: usize,
    database_inconsistencies: Vec<String>,
    /// In nanoseconds.
    operation_time: u64,
    dry_run: bool,
    message: &'static str,
}

/// What attachd did not make.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PredecessorOrphan)]
pub(super) struct Orphan {
    export_name: String,
    reason: &'static str,
}

const NOT_OURS: &str = "attachd did not make it";
const NOTHING: &str =
    "Nothing was deleted: attachd takes its own exports away by itself, and leaves alone what it did not make";
const NO_AGE: &str = "Nothing was deleted: an age is no reason to take an export away";

/// Counts what is there: attachd's exports, and the names that are not its own.
async fn found(context: &Context) -> Result<(usize, Vec<String>, usize), ApiError> {
    let look = |world: &World| {
        let foreign = &world.exported.foreign;
        let published = world.volumes_after(None).filter(|volume| volume.published).count();
        (published, foreign.first().map(str::to_owned).collect(), foreign.count())
    };
    Ok(context.inner.engine.read(look).await?)
}

fn tidied((total, names, orphans): (usize, Vec<String>, usize), dry_run: bool, message: &'static str) -> Tidied {
    let errors = names.iter().filter(|_| !dry_run).map(|name| format!("{name}: {NOT_OURS}; remove it by hand"));
    Tidied {
        total_exports: total,
        orphaned_exports: orphans,
        cleaned_exports: 0,
        failed_cleanups: if dry_run { 0 } else { orphans },
        cleanup_errors: errors.collect(),
        orphaned_export_details: names
            .into_iter()
            .map(|export_name| Orphan { export_name, reason: NOT_OURS })
            .collect(),
        config_files_validated: total,
        database_inconsistencies: Vec::new(),
        operation_time: 0,
        dry_run,
        message,
    }
}

fn timed(begun: Instant, tidied: Tidied) -> Json<Tidied> {
    let operation_time = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
    Json(Tidied { operation_time, ..tidied })
}

/// Names what is there beside attachd's exports. Without a dry run everything is read again before (`/resync`).
#[utoipa::path(post, path = "/api/v1/exports/cleanup", operation_id = "predecessorTidy", tag = "predecessor", request_body = Option<Tidy>, responses(
    (status = 200, body = Tidied),
    (status = 400, body = ErrorBody, description = "The body does not parse; without one it is a dry run"),
    (status = 500, body = ErrorBody, description = "The disks cannot be read")))]
pub(super) async fn tidy(
    State(context): Ctx,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Result<Json<Tidied>, ApiError> {
    let begun = Instant::now();
    let asked = match body.trim_ascii() {
        b"" | b"null" => Tidy::default(),
        body => JsonBody::read(body)?.0,
    };
    let dry_run = asked.dry_run.unwrap_or(true);
    if !dry_run {
        devices::read_again(&context, &peer).await?;
    }
    Ok(timed(begun, tidied(found(&context).await?, dry_run, NOTHING)))
}

/// Names what is there beside attachd's exports. No export is deleted for its age.
#[utoipa::path(post, path = "/api/v1/exports/cleanup/age", operation_id = "predecessorTidyByAge", tag = "predecessor", request_body = TidyByAge, responses(
    (status = 200, body = Tidied),
    (status = 400, body = ErrorBody, description = "The body does not parse, or has no max_age_hours")))]
pub(super) async fn tidy_by_age(
    State(context): Ctx,
    JsonBody(asked): JsonBody<TidyByAge>,
) -> Result<Json<Tidied>, ApiError> {
    let begun = Instant::now();
    if asked.max_age_hours.is_none() {
        return Err(ApiError::of(Code::InvalidBody, "max_age_hours: it is missing"));
    }
    Ok(timed(begun, tidied(found(&context).await?, asked.dry_run.unwrap_or(true), NO_AGE)))
}

/// How many names are not attachd's.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PredecessorOrphans)]
pub(super) struct Orphans {
    orphaned_exports_count: usize,
    #[schema(value_type = String, format = DateTime)]
    timestamp: Timestamp,
}

/// Counts the names in the NBD server's folders that attachd did not make.
#[utoipa::path(get, path = "/api/v1/exports/orphaned/count", operation_id = "predecessorOrphans", tag = "predecessor",
    responses((status = 200, body = Orphans)))]
pub(super) async fn orphans(State(context): Ctx) -> Result<Json<Orphans>, ApiError> {
    let (_, _, count) = found(&context).await?;
    Ok(Json(Orphans { orphaned_exports_count: count, timestamp: clock::wall() }))
}

/// Everything was read again.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PredecessorSynced)]
pub(super) struct Synced {
    message: &'static str,
    #[schema(value_type = String, format = DateTime)]
    timestamp: Timestamp,
}

/// Reads all disks and the folder of exports again, as `/resync` does.
#[utoipa::path(post, path = "/api/v1/admin/force-sync", operation_id = "predecessorForceSync", tag = "predecessor", responses(
    (status = 200, body = Synced),
    (status = 500, body = ErrorBody, description = "The disks cannot be read")))]
pub(super) async fn force_sync(
    State(context): Ctx,
    Extension(peer): Extension<Peer>,
) -> Result<Json<Synced>, ApiError> {
    devices::read_again(&context, &peer).await?;
    Ok(Json(Synced { message: "Force sync completed successfully", timestamp: clock::wall() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_attachd_did_not_make_is_named_and_left_alone_with_and_without_a_dry_run() {
        for (dry_run, failed) in [(true, 0), (false, 12)] {
            let tidied = tidied((7, vec!["theirs".to_owned()], 12), dry_run, NOTHING);
            assert_eq!((tidied.cleaned_exports, tidied.orphaned_exports, tidied.failed_cleanups), (0, 12, failed));
            assert_eq!(tidied.orphaned_export_details[0].export_name, "theirs");
            assert_eq!(tidied.cleanup_errors.len(), usize::from(!dry_run));
        }
    }
}
