//! Refusals as callers see them: the right status and `{"error", "code", "details"}`.

use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::serve::{HEAD_BYTES, HEADERS};
use crate::engine::{Rejection, Stopping};
use crate::helper_client::Holders;
use crate::identity::{NotAVolumeId, VolumeId};
use crate::store::StoreError;
use crate::wire::ErrorBody;

/// A refusal.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    body: ErrorBody,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &'static str, error: impl Into<String>, details: Value) -> Self {
        Self { status, body: ErrorBody { error: error.into(), code: code.into(), details } }
    }

    pub(super) fn bad_request(code: &'static str, error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, error, json!({}))
    }

    pub(super) fn unprocessable(code: &'static str, error: impl Into<String>, details: Value) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, error, details)
    }

    pub(super) fn no_such_volume(volume: VolumeId) -> Self {
        Rejection::Unknown(volume).into()
    }

    pub(super) fn no_such_route(path: &str) -> Self {
        let error = format!("there is no {path} here; GET /api/v1/openapi.json lists what there is");
        Self::new(StatusCode::NOT_FOUND, "NO_SUCH_ROUTE", error, json!({ "path": path }))
    }

    pub(super) fn method_not_allowed(method: &Method, path: &str) -> Self {
        let error = format!("{path} does not take {method}; the Allow header says what it takes");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", error, json!({ "method": method.as_str() }))
    }

    /// Nobody reads it.
    pub(super) fn client_gone() -> Self {
        Self::bad_request("CLIENT_GONE", "the client has hung up")
    }

    /// The store hangs: what was asked may yet be carried out.
    pub(super) fn undecided(silent: &StoreError) -> Self {
        let text = format!("{silent}: whether this is carried out is not known yet; ask again. {}", silent.hint());
        Self::unavailable(silent.code().name(), text)
    }

    pub(super) fn unavailable(code: &'static str, error: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, error, json!({}))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body)).into_response();
        if PASSING.contains(&self.status) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// The same request may succeed a moment later.
const PASSING: [StatusCode; 1] = [StatusCode::SERVICE_UNAVAILABLE];

/// A refusal that ends its connection, as it goes over the wire: for where no router is.
pub(super) fn raw(refusal: &ApiError) -> Vec<u8> {
    let (status, body) = (refusal.status, json!(refusal.body).to_string());
    let retry = if PASSING.contains(&status) { "retry-after: 1\r\n" } else { "" };
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{retry}connection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

/// What to write in place of this head, if it is one by which hyper's parser refuses a request: these come without a body.
/// None of our own answers looks like that: each refusal has a body, and no body has a bare line end.
pub(super) fn of_the_parser(head: &[u8]) -> Option<Vec<u8>> {
    let head = str::from_utf8(head.strip_prefix(b"HTTP/1.")?).ok()?;
    if !head.ends_with("\r\n\r\n") || !head.contains("\r\ncontent-length: 0\r\n") {
        return None;
    }
    let new = |status, code, text: &str| Some(raw(&ApiError::new(status, code, text, json!({}))));
    match head.split(' ').nth(1)? {
        "400" => {
            new(StatusCode::BAD_REQUEST, "BAD_HTTP", "the request is not HTTP/1.1, or a line of its head is wrong")
        }
        "414" => new(StatusCode::URI_TOO_LONG, "URI_TOO_LONG", "the request's path and query are too long"),
        "431" => {
            let text =
                format!("the request's head is too long: at most {HEAD_BYTES} bytes and {HEADERS} lines are taken");
            new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "HEAD_TOO_LARGE", &text)
        }
        _ => None,
    }
}

impl From<Rejection> for ApiError {
    fn from(rejection: Rejection) -> Self {
        let text = rejection.to_string();
        let conflict = |code, details| Self::new(StatusCode::CONFLICT, code, text.clone(), details);
        match rejection {
            Rejection::Unknown(volume) => {
                Self::new(StatusCode::NOT_FOUND, "NO_SUCH_INTENT", text, json!({ "volume_id": volume }))
            }
            Rejection::Differs { field, have, asked, .. } => {
                conflict("INTENT_DIFFERS", json!({ "field": field, "have": have, "asked": asked }))
            }
            Rejection::SerialTaken { asked, have, serial } => {
                conflict("SERIAL_TAKEN", json!({ "asked": asked, "have": have, "serial": serial }))
            }
            Rejection::InUseByHost { uses, .. } => conflict("IN_USE_BY_HOST", json!({ "uses": uses })),
            Rejection::ClientsConnected { clients: Holders { clients, exact }, .. } => {
                conflict("CLIENTS_CONNECTED", json!({ "clients": clients, "clients_exact": exact }))
            }
            Rejection::ExportStuck(_) => Self::unavailable("EXPORT_STUCK", text),
            Rejection::ClientsUnknown { clients, why, .. } => {
                conflict("CLIENTS_UNKNOWN", json!({ "why": why, "clients": clients, "clients_exact": false }))
            }
            Rejection::TooMany { used, limit, .. } => {
                let details = json!({ "used": used, "limit": limit });
                Self::new(StatusCode::TOO_MANY_REQUESTS, "TOO_MANY_INTENTS", text, details)
            }
            Rejection::Leaving(_) => conflict("BEING_WITHDRAWN", json!({})),
            Rejection::Sealed { operation, .. } => conflict("SEALED", json!({ "operation": operation })),
            Rejection::NotSealed { operation, .. } => conflict("NOT_SEALED", json!({ "operation": operation })),
            Rejection::Store(error) => Self::unavailable(error.code().name(), text),
            Rejection::NotDurable(_) => Self::unavailable("STORE_FAILED", text),
            Rejection::NotClaimed(_) => Self::unavailable("CLAIMS_FOLDER", text),
        }
    }
}

impl From<Stopping> for ApiError {
    fn from(stopping: Stopping) -> Self {
        Self::unavailable("STOPPING", stopping.to_string())
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::unavailable(error.code().name(), format!("{error}. {}", error.hint()))
    }
}

impl From<NotAVolumeId> for ApiError {
    fn from(error: NotAVolumeId) -> Self {
        Self::bad_request("NOT_A_VOLUME_ID", error.to_string())
    }
}
