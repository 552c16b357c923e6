//! The predecessor's routes, for the programs that call them today: a translation, and nothing else. What is asked for is
//! an operation or a question to the engine, as on attachd's own routes; what differs is how it is written and read.
//!
//! * Unknown fields and query parameters are accepted, and a body where none is taken is not read.
//! * A request for an operation is answered with 201 and the operation, also if it cannot be carried out: then the
//!   operation has failed, with the predecessor's words before the reason. Only a body that does not parse (400), a path
//!   without a volume id (400), and a store that cannot record the operation (500) are answered otherwise.
//! * Callers know the statuses 400, 404 and 500 only ([`in_known_status`]).

mod asked;
mod exports;
mod figures;
mod mappings;
mod operations;
mod snapshots;
mod upkeep;

use axum::extract::{FromRequestParts, Path};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::Response;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ApiError;
use super::{Context, Ctx, health, middleware};
use crate::identity::{NotAVolumeId, VolumeId};
use crate::reason::Code;
use crate::wire::Health;

/// Returns the routes, each with its part of the OpenAPI document.
pub(super) fn routes(context: &Context) -> OpenApiRouter<Context> {
    let lists = OpenApiRouter::new()
        .routes(routes!(mappings::of_vm))
        .routes(routes!(figures::show))
        .routes(routes!(snapshots::of_context, snapshots::clear))
        .layer(from_fn_with_state(context.clone(), middleware::list));
    OpenApiRouter::new()
        .merge(lists)
        .routes(routes!(operations::create))
        .routes(routes!(operations::attach))
        .routes(routes!(operations::attach_root))
        .routes(routes!(operations::detach))
        .routes(routes!(operations::delete))
        .routes(routes!(operations::clean_up))
        .routes(routes!(mappings::of_volume))
        .routes(routes!(mappings::of_device))
        .routes(routes!(exports::show, exports::delete))
        .routes(routes!(exports::create))
        .routes(routes!(exports::validate))
        .routes(routes!(upkeep::tidy))
        .routes(routes!(upkeep::tidy_by_age))
        .routes(routes!(upkeep::orphans))
        .routes(routes!(upkeep::force_sync))
        .routes(routes!(snapshots::track))
        .routes(routes!(snapshots::update))
        .routes(routes!(show_health))
        .layer(map_response(in_known_status))
}

/// Gives an error the status that callers know.
async fn in_known_status(mut response: Response) -> Response {
    let status = match response.status() {
        StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
        // `/health` answers 503 as attachd's own route.
        StatusCode::SERVICE_UNAVAILABLE if response.extensions().get::<OwnStatus>().is_some() => return response,
        StatusCode::CONFLICT
        | StatusCode::TOO_MANY_REQUESTS
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => StatusCode::INTERNAL_SERVER_ERROR,
        _ => return response,
    };
    *response.status_mut() = status;
    response
}

/// The status of the response is meant as it is.
#[derive(Clone, Copy)]
struct OwnStatus;

/// The volume in the path of a question. A text that is no volume's id names no volume.
struct AskedVolume(VolumeId);

impl<S: Send + Sync> FromRequestParts<S> for AskedVolume {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let not_there = |error: ApiError| error.at(StatusCode::NOT_FOUND);
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|error| not_there(ApiError::of(Code::NotAVolumeId, error.body_text())))?;
        text.parse().map(Self).map_err(|error: NotAVolumeId| not_there(error.into()))
    }
}

/// A text in the path, whatever it is.
struct PathText(String);

impl<S: Send + Sync> FromRequestParts<S> for PathText {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        path.map(|Path(text)| Self(text)).map_err(|error| ApiError::of(Code::BadHttp, error.body_text()))
    }
}

/// The present state of each part, as at `/api/v1/health`.
#[utoipa::path(get, path = "/health", operation_id = "predecessorHealth", tag = "predecessor",
    responses((status = 200, body = Health), (status = 503, body = Health)))]
async fn show_health(context: Ctx) -> Response {
    let mut response = health::show(context).await;
    response.extensions_mut().insert(OwnStatus);
    response
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;

    #[tokio::test]
    async fn a_caller_gets_the_statuses_that_it_knows_and_health_keeps_its_own() {
        for (code, expected) in [
            (Code::InvalidBody, 400),
            (Code::BadJson, 400),
            (Code::NotAVolumeId, 400),
            (Code::NoDevice, 404),
            (Code::ClientsConnected, 500),
            (Code::TooManyOperations, 500),
            (Code::StoreBusy, 500),
            (Code::StoreSilent, 500),
            (Code::Stopping, 500),
        ] {
            let status = in_known_status(ApiError::of(code, "why").into_response()).await.status();
            assert_eq!(status.as_u16(), expected, "{code}");
        }
        let mut health = StatusCode::SERVICE_UNAVAILABLE.into_response();
        health.extensions_mut().insert(OwnStatus);
        assert_eq!(in_known_status(health).await.status().as_u16(), 503);
    }
}
