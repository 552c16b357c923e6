//! A route to the engine's calls for operations, for tests only. It is compiled with the feature `kill-points`, never
//! in a release. `POST /kill-points/{intend,seal,unseal,release}/{volume}/{operation}`; `?force=true` has the same
//! meaning as for a withdrawal. `POST /kill-points/operations` carries an operation out.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
use serde::Deserialize;
use serde_json::json;

use super::body::QueryString;
use super::error::ApiError;
use super::serve::Peer;
use super::{Context, Ctx};
use crate::clock;
use crate::effect;
use crate::helper_client::Holders;
use crate::identity::{OperationId, VolumeId};
use crate::operation::{IdempotencyKey, Request};
use crate::operations::Submission;
use crate::volume::{Intent, IntentOrigin, User};

#[derive(Deserialize)]
struct Options {
    #[serde(default)]
    force: bool,
}

/// Adds the route.
pub(super) fn add(router: Router<Context>) -> Router<Context> {
    router.route("/kill-points/{call}/{volume}/{operation}", post(call)).route("/kill-points/operations", post(operate))
}

/// An operation in the words of the domain.
#[derive(Deserialize)]
struct Wished {
    request: Request,
    key: Option<IdempotencyKey>,
    limit_seconds: Option<u32>,
}

/// Submits an operation and answers when it has ended.
async fn operate(State(context): Ctx, Extension(peer): Extension<Peer>, body: String) -> Response {
    let Wished { request, key, limit_seconds } = match serde_json::from_str(&body) {
        Ok(wished) => wished,
        Err(error) => return (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    };
    let operations = &context.inner.operations;
    let submission = Submission { request, written: None, key, limit_seconds, uid: peer.uid };
    let followed = async {
        let submitted = operations.submit(submission).await?;
        operations.ended(submitted.operation.id).await
    };
    let body = match followed.await {
        Ok(operation) => json!({
            "id": operation.id,
            "state": operation.state,
            "volume_id": operation.volume,
            "fault": operation.fault,
            "response": operation.response,
        }),
        Err(refused) => {
            let body = Json(json!({ "code": refused.code().name(), "error": refused.to_string() }));
            return (StatusCode::CONFLICT, body).into_response();
        }
    };
    effect::at("answer", || Json(body).into_response())
}

async fn call(
    State(context): Ctx,
    Extension(peer): Extension<Peer>,
    Path((call, volume, operation)): Path<(String, VolumeId, OperationId)>,
    QueryString(Options { force }): QueryString<Options>,
) -> Result<Response, ApiError> {
    let (engine, user) = (&context.inner.engine, User(peer.uid));
    let Holders { clients, exact } = match &*call {
        "seal" => engine.seal(volume, operation, force, user).await??,
        "release" => engine.release(volume, operation, force, user).await??,
        "unseal" => {
            engine.unseal(volume, operation, user).await??;
            nobody()
        }
        "intend" => {
            let intent = Intent {
                volume,
                vm_id: String::new(),
                size_bytes: None,
                deadline_seconds: None,
                deadline: None,
                created_at: clock::wall(),
                uid: peer.uid,
                origin: IntentOrigin::Operation(operation),
            };
            engine.intend(intent).await??;
            nobody()
        }
        _ => return Ok(StatusCode::NOT_FOUND.into_response()),
    };
    let body = Json(json!({ "clients": clients, "clients_exact": exact }));
    Ok(effect::at("answer", || body.into_response()))
}

fn nobody() -> Holders {
    Holders { clients: Vec::new(), exact: true }
}
