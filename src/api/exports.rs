//! Exports: what NBD clients can ask for.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::Map;
use utoipa::IntoParams;

use super::Ctx;
use super::body::QueryString;
use super::checked;
use super::error::ApiError;
use super::volumes::export;
use crate::engine::world::World;
use crate::volume::State as VolumeState;
use crate::wire::{ExportEntry, ExportList, PredecessorStatus};

/// What is asked.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Wish {
    /// Ask the NBD server for its list, and open each export once.
    #[serde(default)]
    check: bool,
}

/// Lists what is published, served or not.
#[utoipa::path(get, path = "/api/v1/exports", operation_id = "listExports", params(Wish), responses((status = 200, body = ExportList)))]
pub(super) async fn list(
    State(context): Ctx,
    QueryString(wish): QueryString<Wish>,
) -> Result<Json<ExportList>, ApiError> {
    let listen = context.inner.settings.listen;
    let look = move |world: &World| {
        let published = world.volumes().filter(|volume| volume.published);
        let mut exports: Vec<ExportEntry> = published
            .map(|volume| ExportEntry {
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
                metadata: Map::new(),
            })
            .collect();
        exports.sort_by_key(|export| export.volume_id);
        let foreign = &world.exported.foreign;
        ExportList {
            count: exports.len(),
            exports,
            foreign: foreign.first().map(str::to_owned).collect(),
            foreign_count: foreign.count(),
            checked: None,
        }
    };
    let mut list = context.inner.engine.read(look).await?;
    if wish.check {
        list.checked = Some(checked::exports(&context).await?);
    }
    Ok(Json(list))
}
