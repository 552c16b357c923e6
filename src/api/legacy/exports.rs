//! Exports in the predecessor's words. An export follows from its volume: it is made when the volume's disk is proven,
//! and taken away when the volume goes.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::body::{JsonBody, VolumePath};
use super::super::error::ApiError;
use super::super::exports::entry;
use super::super::serve::Peer;
use super::super::{Context, Ctx, checked, unless_silent};
use super::AskedVolume;
use crate::effect;
use crate::engine::Rejection;
use crate::engine::world::World;
use crate::identity::VolumeId;
use crate::reason::Code;
use crate::volume::User;
use crate::wire::{CheckedExport, ErrorBody, ExportEntry, ServedCount};

/// The most exports that a message names.
const NAMED: usize = 10;

/// Returns a volume's export, or why there is none.
async fn export(context: &Context, volume: VolumeId) -> Result<ExportEntry, ApiError> {
    let listen = context.in_use().settings.export.listen;
    let look = move |world: &World| world.volume(volume).map(|volume| (volume.published, volume.shown()));
    let why = match context.inner.engine.read(look).await? {
        Some((true, shown)) => return Ok(entry(&shown, listen)),
        Some((false, shown)) => format!("it is {} on this host", shown.state),
        None => "it is not on this host".to_owned(),
    };
    Err(ApiError::of(Code::NoExport, format!("volume {volume} has no export: {why}")))
}

/// Shows a volume's export. `active`: it is served.
#[utoipa::path(get, path = "/api/v1/exports/{volume_id}", operation_id = "predecessorExport", tag = "predecessor",
    params(("volume_id" = VolumeId, Path)), responses(
    (status = 200, body = ExportEntry),
    (status = 404, body = ErrorBody, description = "NO_EXPORT: there is none; the text says how the volume stands")))]
pub(super) async fn show(State(context): Ctx, AskedVolume(volume): AskedVolume) -> Result<Json<ExportEntry>, ApiError> {
    export(&context, volume).await.map(Json)
}

/// For which volume an export is wanted.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = PredecessorNewExport)]
#[serde(default)]
pub(super) struct NewExport {
    /// The volume's UUID.
    #[schema(required = true, value_type = VolumeId)]
    volume_id: Option<String>,
}

/// Shows the export of a volume that has one. It makes none: an attach does.
#[utoipa::path(post, path = "/api/v1/exports", operation_id = "predecessorNewExport", tag = "predecessor", request_body = NewExport, responses(
    (status = 201, body = ExportEntry),
    (status = 400, body = ErrorBody, description = "The body does not parse, or has no volume id"),
    (status = 404, body = ErrorBody, description = "NO_EXPORT: attach the volume, and it gets one")))]
pub(super) async fn create(State(context): Ctx, JsonBody(new): JsonBody<NewExport>) -> Result<Response, ApiError> {
    let volume: VolumeId = new.volume_id.unwrap_or_default().parse()?;
    match export(&context, volume).await {
        Ok(export) => Ok((StatusCode::CREATED, Json(export)).into_response()),
        Err(error) => {
            let cure = format!("attach it (POST /api/v1/volumes/{volume}/attach), and its export is made with it");
            Err(error.with(&cure))
        }
    }
}

/// What was done.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PredecessorMessage)]
pub(super) struct Done {
    pub(super) message: String,
}

/// Withdraws a volume from this host, with its export; CloudStack is not asked to detach it. Refused while NBD clients
/// are connected. A volume that is not here is no error.
#[utoipa::path(delete, path = "/api/v1/exports/{volume_id}", operation_id = "predecessorDeleteExport", tag = "predecessor",
    params(("volume_id" = VolumeId, Path)), responses(
    (status = 200, body = Done),
    (status = 400, body = ErrorBody, description = "The path has no volume id"),
    (status = 500, body = ErrorBody, description = "NBD clients are or may be connected, an operation has the volume, or the store cannot be written")))]
pub(super) async fn delete(
    State(context): Ctx,
    Extension(peer): Extension<Peer>,
    VolumePath(volume): VolumePath,
) -> Result<Response, ApiError> {
    let withdrawn = unless_silent(&context, context.inner.engine.withdraw(volume, false, User(peer.uid))).await??;
    match withdrawn {
        Ok(_) | Err(Rejection::Unknown(_)) => {
            let done = Done { message: "NBD export deleted successfully".to_owned() };
            Ok(effect::at("answer", || Json(done).into_response()))
        }
        Err(rejection) => Err(rejection.into()),
    }
}

/// What a client would get.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PredecessorValidation)]
pub(super) struct Validation {
    message: String,
    served: ServedCount,
    /// Exports that are not as they should be.
    findings: Vec<CheckedExport>,
}

/// Opens each export once, and says which a client would not be served, or the NBD server remembers in vain.
#[utoipa::path(post, path = "/api/v1/exports/validate", operation_id = "predecessorValidate", tag = "predecessor",
    responses((status = 200, body = Validation)))]
pub(super) async fn validate(State(context): Ctx) -> Result<Json<Validation>, ApiError> {
    let checked = checked::exports(&context).await?;
    let served = ServedCount::of(&checked);
    let findings: Vec<_> = checked.into_iter().filter(is_amiss).collect();
    Ok(Json(Validation { message: in_words(&findings), served, findings }))
}

fn is_amiss(export: &CheckedExport) -> bool {
    let unserved = (export.due || export.published) && export.openable != Some(true);
    unserved || export.stale
}

fn in_words(findings: &[CheckedExport]) -> String {
    let named = findings.iter().take(NAMED).map(|export| {
        let why =
            if export.stale { "the NBD server remembers it" } else { export.why.as_deref().unwrap_or("not checked") };
        format!("{} ({why})", export.name)
    });
    match findings.len() {
        0 => "NBD exports validation completed successfully".to_owned(),
        count => format!("{count} exports are not as they should be: {}", named.collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(due: bool, openable: Option<bool>, stale: bool) -> CheckedExport {
        CheckedExport {
            name: "n".to_owned(),
            volume_id: None,
            wanted: !stale,
            published: due,
            due,
            listed: Some(true),
            openable,
            why: None,
            stale,
            clear: None,
        }
    }

    #[test]
    fn an_export_that_a_client_would_not_be_served_is_named() {
        assert!(!is_amiss(&checked(true, Some(true), false)) && !is_amiss(&checked(false, Some(false), false)));
        for export in [checked(true, Some(false), false), checked(true, None, false), checked(false, Some(true), true)]
        {
            assert!(is_amiss(&export), "{export:?}");
            assert!(in_words(&[export]).starts_with("1 exports are not as they should be: n ("));
        }
        assert_eq!(in_words(&[]), "NBD exports validation completed successfully");
    }
}
