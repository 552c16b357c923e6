//! Operations in the predecessor's words. Each is attachd's own operation, and is followed at `/api/v1/operations/{id}`.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

use super::super::body::{JsonBody, VolumePath};
use super::super::error::ApiError;
use super::super::operations::view;
use super::super::serve::Peer;
use super::super::{Context, Ctx, unless_silent};
use super::asked::{self, Asked, NewVolume, TestFailover, ToVm};
use crate::effect;
use crate::identity::VolumeId;
use crate::operation::Operation;
use crate::operations::{Submission, Submitted};
use crate::wire::{ErrorBody, OperationView};

/// The same request again, while its operation is open, is the same operation.
async fn begin(context: Context, peer: Peer, asked: Asked) -> Result<Response, ApiError> {
    let Asked { request, written } = asked;
    let written = Some(written);
    let submission = Submission { request, written: written.clone(), key: None, limit_seconds: None, uid: peer.uid };
    let submitted = unless_silent(&context, context.inner.operations.submit(submission)).await?;
    let Submitted { operation, .. } = submitted?;
    // It may have been begun by another route; this caller reads it in its own words.
    let operation = Operation { written, ..(*operation).clone() };
    let view = view(&context, &operation).await?;
    let location = [(header::LOCATION, format!("/api/v1/operations/{}", operation.id))];
    Ok(effect::at("answer", || (StatusCode::CREATED, location, Json(view)).into_response()))
}

/// Creates a volume.
#[utoipa::path(post, path = "/api/v1/volumes", operation_id = "predecessorCreate", tag = "predecessor", request_body = NewVolume, responses(
    (status = 201, body = OperationView, description = "On record, durably. It has failed if it cannot be carried out"),
    (status = 400, body = ErrorBody, description = "The body does not parse"),
    (status = 500, body = ErrorBody, description = "It is not on record, and was not begun; or whether it is on record is not known")))]
pub(super) async fn create(
    State(context): Ctx,
    Extension(peer): Extension<Peer>,
    JsonBody(body): JsonBody<NewVolume>,
) -> Result<Response, ApiError> {
    begin(context, peer, asked::create(body)).await
}

/// Attaches a volume. For this host's own VM it is completed when the volume is served.
#[utoipa::path(post, path = "/api/v1/volumes/{volume_id}/attach", operation_id = "predecessorAttach", tag = "predecessor",
    params(("volume_id" = VolumeId, Path)), request_body = ToVm, responses(
    (status = 201, body = OperationView, description = "On record, durably. It has failed if it cannot be carried out"),
    (status = 400, body = ErrorBody, description = "The body does not parse, or the path has no volume id"),
    (status = 500, body = ErrorBody, description = "It is not on record, and was not begun; or whether it is on record is not known")))]
pub(super) async fn attach(
    State(context): Ctx,
    Extension(peer): Extension<Peer>,
    VolumePath(volume): VolumePath,
    JsonBody(body): JsonBody<ToVm>,
) -> Result<Response, ApiError> {
    begin(context, peer, asked::attach(volume, &body, false)).await
}

/// Attaches a volume as a VM's root disk.
#[utoipa::path(post, path = "/api/v1/volumes/{volume_id}/attach-root", operation_id = "predecessorAttachRoot", tag = "predecessor",
    params(("volume_id" = VolumeId, Path)), request_body = ToVm, responses(
    (status = 201, body = OperationView, description = "On record, durably. It has failed if it cannot be carried out"),
    (status = 400, body = ErrorBody, description = "The body does not parse, or the path has no volume id"),
    (status = 500, body = ErrorBody, description = "It is not on record, and was not begun; or whether it is on record is not known")))]
pub(super) async fn attach_root(
    State(context): Ctx,
    Extension(peer): Extension<Peer>,
    VolumePath(volume): VolumePath,
    JsonBody(body): JsonBody<ToVm>,
) -> Result<Response, ApiError> {
    begin(context, peer, asked::attach(volume, &body, true)).await
}

/// Detaches a volume from where it is. Connected NBD clients are served and waited for up to 30 s; then it fails.
#[utoipa::path(post, path = "/api/v1/volumes/{volume_id}/detach", operation_id = "predecessorDetach", tag = "predecessor",
    params(("volume_id" = VolumeId, Path)), responses(
    (status = 201, body = OperationView, description = "On record, durably. It has failed if it cannot be carried out"),
    (status = 400, body = ErrorBody, description = "The path has no volume id"),
    (status = 500, body = ErrorBody, description = "It is not on record, and was not begun; or whether it is on record is not known")))]
pub(super) async fn detach(
    State(context): Ctx,
    Extension(peer): Extension<Peer>,
    VolumePath(volume): VolumePath,
) -> Result<Response, ApiError> {
    begin(context, peer, asked::detach(volume)).await
}

/// Detaches a volume from where it is, as above, and deletes it for good.
#[utoipa::path(delete, path = "/api/v1/volumes/{volume_id}", operation_id = "predecessorDelete", tag = "predecessor",
    params(("volume_id" = VolumeId, Path)), responses(
    (status = 201, body = OperationView, description = "On record, durably. It has failed if it cannot be carried out"),
    (status = 400, body = ErrorBody, description = "The path has no volume id"),
    (status = 500, body = ErrorBody, description = "It is not on record, and was not begun; or whether it is on record is not known")))]
pub(super) async fn delete(
    State(context): Ctx,
    Extension(peer): Extension<Peer>,
    VolumePath(volume): VolumePath,
) -> Result<Response, ApiError> {
    begin(context, peer, asked::delete(volume)).await
}

/// Brings a volume back from the VM of a test.
#[utoipa::path(post, path = "/api/v1/cleanup/test-failover", operation_id = "predecessorCleanup", tag = "predecessor",
    request_body = TestFailover, responses(
    (status = 201, body = OperationView, description = "On record, durably. It has failed if it cannot be carried out"),
    (status = 400, body = ErrorBody, description = "The body does not parse"),
    (status = 500, body = ErrorBody, description = "It is not on record, and was not begun; or whether it is on record is not known")))]
pub(super) async fn clean_up(
    State(context): Ctx,
    Extension(peer): Extension<Peer>,
    JsonBody(body): JsonBody<TestFailover>,
) -> Result<Response, ApiError> {
    begin(context, peer, asked::clean_up(&body)).await
}
