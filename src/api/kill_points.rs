//! A route to the engine's calls for operations, for tests only. It is compiled with the feature `kill-points`, never
//! in a release. `POST /kill-points/{intend,seal,unseal,release}/{volume}/{operation}`; `?force=true` has the same
//! meaning as for a withdrawal.

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
use crate::volume::{Intent, IntentOrigin, User};

#[derive(Deserialize)]
struct Options {
    #[serde(default)]
    force: bool,
}

/// Adds the route.
pub(super) fn add(router: Router<Context>) -> Router<Context> {
    router.route("/kill-points/{call}/{volume}/{operation}", post(call))
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
