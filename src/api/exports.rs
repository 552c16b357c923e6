//! Exports: what NBD clients can ask for.

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

use super::Ctx;
use super::body::QueryString;
use super::checked::{self, CheckedExport};
use super::error::ApiError;
use super::volumes::ExportView;
use crate::engine::world::World;
use crate::identity::VolumeId;
use crate::volume::State as VolumeState;

/// One export; the second half repeats it in the predecessor's words.
#[derive(Serialize, ToSchema)]
pub(super) struct ExportEntry {
    #[serde(flatten)]
    export: ExportView,
    volume_id: VolumeId,
    device_path: Option<String>,
    id: &'static str,
    export_name: String,
    port: u16,
    /// `active` or `pending`.
    status: &'static str,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
    #[schema(value_type = Object)]
    metadata: Map<String, Value>,
}

/// All exports.
#[derive(Serialize, ToSchema)]
pub(super) struct ExportList {
    exports: Vec<ExportEntry>,
    count: usize,
    /// Names in the served folder that attachd did not make, the first ten.
    foreign: Vec<String>,
    /// How many there are.
    foreign_count: usize,
    /// With `check`: what the server itself says about each export that it lists or should serve.
    #[serde(skip_serializing_if = "Option::is_none")]
    checked: Option<Vec<CheckedExport>>,
}

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
                export: ExportView::of(volume, listen),
                volume_id: volume.intent.volume,
                device_path: volume.mapping.as_ref().map(|mapping| mapping.link.clone()),
                id: "0",
                export_name: volume.intent.volume.export_name(),
                port: listen.port(),
                status: if volume.state == VolumeState::Ready { "active" } else { "pending" },
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
