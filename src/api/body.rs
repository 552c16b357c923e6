//! What callers send: JSON bodies and query strings, whatever Content-Type says (`curl -d` names a wrong one).

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::error::ApiError;
use crate::identity::VolumeId;

/// No request needs more.
const LONGEST_BODY: usize = 64 * 1024;

/// A body that is still not complete after this is given up.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// A JSON body.
pub(super) struct JsonBody<T>(pub(super) T);

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let bytes = read(request.into_body()).await?;
        if bytes.is_empty() {
            return Err(ApiError::bad_request("EMPTY_BODY", "the request has no body; it takes a JSON object"));
        }
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            let text = format!("the body cannot be used: {error}");
            let details = json!({ "line": error.line(), "column": error.column() });
            match error.classify() {
                serde_json::error::Category::Data => ApiError::unprocessable("INVALID_BODY", text, details),
                _ => ApiError::new(StatusCode::BAD_REQUEST, "BAD_JSON", text, details),
            }
        })
    }
}

async fn read(body: Body) -> Result<axum::body::Bytes, ApiError> {
    match tokio::time::timeout(TIME_LIMIT, axum::body::to_bytes(body, LONGEST_BODY)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => {
            // The limit's own error sits inside; a connection that broke off ends here as well, and nobody reads that.
            let text = format!("the body cannot be read (more than {LONGEST_BODY} bytes?): {error}");
            Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "BODY_TOO_LARGE", text, json!({ "limit": LONGEST_BODY })))
        }
        Err(_) => {
            let text = format!("the body was not complete after {} s", TIME_LIMIT.as_secs());
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "BODY_TOO_SLOW", text, json!({})))
        }
    }
}

/// The volume id in the path.
pub(super) struct VolumePath(pub(super) VolumeId);

impl<S: Send + Sync> FromRequestParts<S> for VolumePath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let Path(text) = path.map_err(|error| ApiError::bad_request("NOT_A_VOLUME_ID", error.body_text()))?;
        Ok(Self(text.parse()?))
    }
}

/// The query string.
pub(super) struct QueryString<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for QueryString<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        query.map(|Query(query)| Self(query)).map_err(|error| ApiError::bad_request("INVALID_QUERY", error.body_text()))
    }
}
