//! Exports: what NBD clients can connect to.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use utoipa::IntoParams;

use super::Ctx;
use super::body::QueryString;
use super::checked;
use super::error::ApiError;
use super::pages;
use super::volumes::export;
use crate::engine::world::{Shown, Volume, World};
use crate::identity::VolumeId;
use crate::reason::Code;
use crate::volume::State as VolumeState;
use crate::wire::{ExportEntry, ExportList, PredecessorStatus, ServedCount, whole_in_query};

/// The largest `limit`.
const MOST_LISTED: u32 = 1000;

/// The options of the listing.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct ExportOptions {
    /// Ask the NBD server for its list, and open each export once.
    #[serde(default)]
    check: bool,
    /// Only the export of this volume.
    #[param(inline, value_type = Option<VolumeId>)]
    volume_id: Option<String>,
    /// Only exports with this `status`.
    #[param(inline)]
    status: Option<PredecessorStatus>,
    /// Only exports whose name contains this.
    vm_name: Option<String>,
    /// At most so many.
    #[param(minimum = 1, maximum = 1000)]
    #[serde(default, deserialize_with = "whole_in_query")]
    limit: Option<u32>,
}

impl ExportOptions {
    /// Returns whether an export is wanted.
    fn wants(&self, volume: Option<VolumeId>, export: &ExportEntry) -> bool {
        volume.is_none_or(|volume| export.volume_id == volume)
            && self.status.is_none_or(|status| export.status == status)
            && self.vm_name.as_deref().is_none_or(|part| export.export_name.contains(part))
    }
}

/// Lists what is published, served or not.
#[utoipa::path(get, path = "/api/v1/exports", operation_id = "listExports", params(ExportOptions), responses((status = 200, body = ExportList)))]
pub(super) async fn list(
    State(context): Ctx,
    QueryString(wish): QueryString<ExportOptions>,
) -> Result<Response, ApiError> {
    let volume = wish.volume_id.as_deref().map(str::parse::<VolumeId>).transpose()?;
    if wish.limit.is_some_and(|limit| !(1..=MOST_LISTED).contains(&limit)) {
        let text = format!("limit takes a number from 1 to {MOST_LISTED}; without it all exports are listed");
        return Err(ApiError::of(Code::InvalidQuery, text));
    }
    let most = wish.limit.map_or(usize::MAX, |limit| limit as usize);
    let listen = context.in_use().settings.export.listen;
    let engine = &context.inner.engine;
    let pick = |_: &World, volume: &Volume| volume.published.then(|| volume.shown());
    let (foreign, foreign_count) = engine
        .read(|world| {
            let foreign = &world.exported.foreign;
            (foreign.first().map(str::to_owned).collect(), foreign.count())
        })
        .await?;
    let checked = if wish.check { Some(checked::exports(&context).await?) } else { None };
    let served = checked.as_deref().map(ServedCount::of);
    let make = move |exports: Vec<Arc<Shown>>| {
        let exports = exports.iter().map(|volume| entry(volume, listen));
        let exports: Vec<_> = exports.filter(|export| wish.wants(volume, export)).take(most).collect();
        ExportList { count: exports.len(), exports, foreign, foreign_count, checked, served }
    };
    pages::list(engine, pick, make).await
}

pub(super) fn entry(volume: &Shown, listen: SocketAddr) -> ExportEntry {
    ExportEntry {
        export: export(volume, listen),
        volume_id: volume.intent.volume,
        device_path: volume.mapping.as_ref().map(|mapping| mapping.link.clone()),
        id: "0".into(),
        export_name: volume.intent.volume.export_name(),
        port: listen.port(),
        status: match volume.state {
            VolumeState::Ready => PredecessorStatus::Active,
            _ => PredecessorStatus::Pending,
        },
        created_at: volume.intent.created_at,
        updated_at: volume.since,
        metadata: ["job_id", "config_path"].map(|name| (name.to_owned(), "".into())).into_iter().collect(),
    }
}
