//! Exports in the predecessor's words.

use axum::Json;
use axum::extract::State;

use super::super::Ctx;
use super::super::error::ApiError;
use super::super::exports::entry;
use super::AskedVolume;
use crate::engine::world::World;
use crate::identity::VolumeId;
use crate::reason::Code;
use crate::wire::{ErrorBody, ExportEntry};

/// Shows a volume's export. `active`: it is served.
#[utoipa::path(get, path = "/api/v1/exports/{volume_id}", operation_id = "predecessorExport", tag = "predecessor",
    params(("volume_id" = VolumeId, Path)), responses(
    (status = 200, body = ExportEntry),
    (status = 404, body = ErrorBody, description = "NO_EXPORT: there is none; the text says how the volume stands")))]
pub(super) async fn show(State(context): Ctx, AskedVolume(volume): AskedVolume) -> Result<Json<ExportEntry>, ApiError> {
    let listen = context.in_use().settings.export.listen;
    let look = move |world: &World| world.volume(volume).map(|volume| (volume.published, volume.shown()));
    match context.inner.engine.read(look).await? {
        Some((true, shown)) => Ok(Json(entry(&shown, listen))),
        Some((false, shown)) => {
            let text = format!("volume {volume} has no export: it is {}", shown.state);
            Err(ApiError::of(Code::NoExport, text))
        }
        None => Err(ApiError::of(Code::NoExport, format!("volume {volume} has no export: it is not on this host"))),
    }
}
