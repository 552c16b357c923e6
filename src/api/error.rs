//! Errors as callers see them: an HTTP status and `{"error", "code", "details"}`.

use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::shares::{HEAD_BYTES, HEADERS};
use crate::engine::{Rejection, Stopping};
use crate::helper_client::Holders;
use crate::identity::{NotAVolumeId, NotAnOperationId, VolumeId};
use crate::reason::Code;
use crate::store::StoreError;
use crate::wire::ErrorBody;

/// An error response.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    body: ErrorBody,
}

impl ApiError {
    /// Makes an error whose HTTP status follows from its code.
    pub(super) fn new(code: Code, error: impl Into<String>, details: Value) -> Self {
        debug_assert!(code.status().is_some(), "{code} is no error of the API");
        let status = code.status().and_then(|status| StatusCode::from_u16(status).ok());
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, body: ErrorBody { error: error.into(), code: code.into(), details } }
    }

    /// Makes an error without details.
    pub(super) fn of(code: Code, error: impl Into<String>) -> Self {
        Self::new(code, error, json!({}))
    }

    /// Makes an error for an internal failure that may be over a moment later.
    pub(super) fn failed_for_now(error: impl Into<String>) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, ..Self::of(Code::Failed, error) }
    }

    /// Adds what to do to the text.
    pub(super) fn with(mut self, cure: &str) -> Self {
        self.body.error = format!("{}; {cure}", self.body.error);
        self
    }

    /// Gives the error another status than its code has, for callers who know only that one.
    pub(super) fn at(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    pub(super) fn no_such_volume(volume: VolumeId) -> Self {
        Rejection::Unknown(volume).into()
    }

    pub(super) fn no_such_route(path: &str) -> Self {
        let error = format!("there is no {path} here; GET /api/v1/openapi.json lists what there is");
        Self::new(Code::NoSuchRoute, error, json!({ "path": path }))
    }

    pub(super) fn method_not_allowed(method: &Method, path: &str) -> Self {
        let error = format!("{path} does not take {method}; the Allow header says what it takes");
        Self::new(Code::MethodNotAllowed, error, json!({ "method": method.as_str() }))
    }

    /// The client has hung up, so nobody reads this response.
    pub(super) fn client_gone() -> Self {
        Self::of(Code::ClientGone, "the client has hung up")
    }

    /// The store does not answer: the request may still be carried out.
    pub(super) fn undecided(silent: &StoreError) -> Self {
        let text = format!("{silent}: whether this is carried out is not known yet; ask again. {}", silent.hint());
        Self::of(silent.code(), text)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let passes = PASSING.contains(&self.status) && self.body.code != Code::NoCloud.into();
        let mut response = (self.status, Json(self.body)).into_response();
        if response.status() == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if passes {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// The statuses for which the same request may succeed a moment later.
const PASSING: [StatusCode; 1] = [StatusCode::SERVICE_UNAVAILABLE];

/// Writes an error as bytes of HTTP that end the connection, for use outside the router.
pub(super) fn raw(refusal: &ApiError) -> Vec<u8> {
    let (status, body) = (refusal.status, json!(refusal.body).to_string());
    let retry = if PASSING.contains(&status) { "retry-after: 1\r\n" } else { "" };
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{retry}connection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Returns the bytes to send in place of this response head, if it is a refusal by hyper's parser, which has no body.
/// No response of attachd's can be mistaken for one: each of its errors has a body, and no body contains a bare line
/// end.
pub(super) fn of_the_parser(head: &[u8]) -> Option<Vec<u8>> {
    let head = str::from_utf8(head.strip_prefix(b"HTTP/1.")?).ok()?;
    if !head.ends_with("\r\n\r\n") || !head.contains("\r\ncontent-length: 0\r\n") {
        return None;
    }
    let new = |code, text: &str| Some(raw(&ApiError::of(code, text)));
    match head.split(' ').nth(1)? {
        "400" => new(Code::BadHttp, "the request is not HTTP/1.1, or a line of its head is wrong"),
        "414" => new(Code::UriTooLong, "the request's path and query are too long"),
        "431" => {
            let text =
                format!("the request's head is too long: at most {HEAD_BYTES} bytes and {HEADERS} lines are taken");
            new(Code::HeadTooLarge, &text)
        }
        _ => None,
    }
}

impl From<Rejection> for ApiError {
    fn from(rejection: Rejection) -> Self {
        let text = rejection.to_string();
        let conflict = |code, details| Self::new(code, text.clone(), details);
        match rejection {
            Rejection::Unknown(volume) => Self::new(Code::NoSuchIntent, text, json!({ "volume_id": volume })),
            Rejection::Differs { field, have, asked, .. } => {
                conflict(Code::IntentDiffers, json!({ "field": field, "have": have, "asked": asked }))
            }
            Rejection::SerialTaken { asked, have, serial } => {
                conflict(Code::SerialTaken, json!({ "asked": asked, "have": have, "serial": serial }))
            }
            Rejection::InUseByHost { uses, .. } => conflict(Code::InUseByHost, json!({ "uses": uses })),
            Rejection::ClientsConnected { clients: Holders { clients, exact }, .. } => {
                conflict(Code::ClientsConnected, json!({ "clients": clients, "clients_exact": exact }))
            }
            Rejection::ExportStuck(_) => Self::of(Code::ExportStuck, text),
            Rejection::ClientsUnknown { clients, why, .. } => {
                conflict(Code::ClientsUnknown, json!({ "why": why, "clients": clients, "clients_exact": false }))
            }
            Rejection::TooMany { used, limit, .. } => {
                let details = json!({ "used": used, "limit": limit });
                Self::new(Code::TooManyIntents, text, details)
            }
            Rejection::Leaving(_) => conflict(Code::BeingWithdrawn, json!({})),
            Rejection::Sealed { operation, .. } => conflict(Code::Sealed, json!({ "operation": operation })),
            Rejection::NotSealed { operation, .. } => conflict(Code::NotSealed, json!({ "operation": operation })),
            Rejection::Store(error) => Self::of(error.code(), text),
            Rejection::NotDurable(_) => Self::of(Code::StoreFailed, text),
            Rejection::NotClaimed(_) => Self::of(Code::ClaimsFolder, text),
        }
    }
}

impl From<Stopping> for ApiError {
    fn from(stopping: Stopping) -> Self {
        Self::of(Code::Stopping, stopping.to_string())
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::of(error.code(), format!("{error}. {}", error.hint()))
    }
}

impl From<NotAnOperationId> for ApiError {
    fn from(error: NotAnOperationId) -> Self {
        Self::of(Code::NotAnOperationId, error.to_string())
    }
}

impl From<NotAVolumeId> for ApiError {
    fn from(error: NotAVolumeId) -> Self {
        Self::of(Code::NotAVolumeId, error.to_string())
    }
}
