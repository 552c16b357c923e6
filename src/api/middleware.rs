//! The middleware before every handler. It reads the whole request body and takes one of the user's slots for a
//! request that needs one.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde_json::json;
use tokio::time::{Instant, timeout, timeout_at};

use super::Ctx;
use super::error::ApiError;
use super::pieces::Pieces;
use super::serve::Peer;
use crate::reason::Code;

/// The size limit of a body, in bytes; no request needs more.
const LONGEST_BODY: usize = 64 * 1024;

/// A longer body is read and dropped up to this size, so that the client gets the error response and not a broken
/// pipe.
const LONGEST_READ_AWAY: u64 = 16 * 1024 * 1024;

/// The time limit for reading a body.
const BODY_LIMIT: Duration = Duration::from_secs(10);

/// How long a request waits for one of its user's slots. This is longer than the time after which a client that reads
/// nothing is disconnected.
const PLACE_LIMIT: Duration = Duration::from_secs(15);

/// Reads the whole body before anything is answered, whether or not the handler uses it.
pub(super) async fn read_body(request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    // A client that sends `Expect` waits for permission before it sends the body.
    let waits = head.headers.contains_key(header::EXPECT);
    match read(body, waits).await {
        Ok(bytes) => next.run(Request::from_parts(head, Body::from(bytes))).await,
        Err(refusal) => {
            // The rest of the body could not be told from a next request.
            let mut response = refusal.into_response();
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            response
        }
    }
}

async fn read(body: Body, waits: bool) -> Result<Bytes, ApiError> {
    use axum::body::HttpBody;
    let announced = body.size_hint().lower();
    let too_long = announced > LONGEST_BODY as u64;
    if announced > LONGEST_READ_AWAY || (waits && too_long) {
        return Err(too_large());
    }
    let (mut pieces, mut kept, mut length) = (body.into_data_stream(), Vec::new(), 0_u64);
    let deadline = Instant::now() + BODY_LIMIT;
    loop {
        let piece = timeout_at(deadline, pieces.next()).await;
        match piece.map_err(|_| too_slow())? {
            Some(Ok(piece)) => {
                length += piece.len() as u64;
                if length <= LONGEST_BODY as u64 {
                    kept.extend_from_slice(&piece);
                } else if length > LONGEST_READ_AWAY {
                    return Err(too_large());
                }
            }
            Some(Err(error)) => {
                let text = format!("the body cannot be read: {error}");
                return Err(ApiError::of(Code::BadBody, text));
            }
            None if length > LONGEST_BODY as u64 => return Err(too_large()),
            None => return Ok(kept.into()),
        }
    }
}

fn too_large() -> ApiError {
    let text = format!("the body is too long; at most {LONGEST_BODY} bytes are taken");
    ApiError::new(Code::BodyTooLarge, text, json!({ "limit": LONGEST_BODY }))
}

fn too_slow() -> ApiError {
    let text = format!("the body was not complete after {} s", BODY_LIMIT.as_secs());
    ApiError::new(Code::BodyTooSlow, text, json!({}))
}

/// Gives a request that changes something one of its user's slots until the change is done, even if its client does
/// not wait.
pub(super) async fn change(
    State(context): Ctx,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    if request.method() == Method::GET || request.method() == Method::HEAD {
        return next.run(request).await;
    }
    let Ok(slot) = timeout(PLACE_LIMIT, context.inner.changes.take(peer.owner)).await else {
        return no_slot("changes").into_response();
    };
    let done = tokio::spawn(async move {
        let response = next.run(request).await;
        drop(slot);
        response
    });
    done.await.unwrap_or_else(|error| {
        ApiError::new(Code::Failed, format!("the request failed: {error}"), json!({})).into_response()
    })
}

/// Gives a request for a list one of its user's slots until the client has read the answer. A list has no size limit,
/// and unread answers must not fill the memory.
pub(super) async fn list(
    State(context): Ctx,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    if request.method() != Method::GET {
        return next.run(request).await;
    }
    let Ok(Some(slot)) = timeout(PLACE_LIMIT, context.inner.lists.take(peer.owner)).await else {
        return no_slot("lists").into_response();
    };
    let (head, body) = next.run(request).await.into_parts();
    match axum::body::to_bytes(body, usize::MAX).await {
        Ok(bytes) => Response::from_parts(head, Body::new(Pieces::new(bytes, slot))),
        Err(error) => ApiError::failed_for_now(format!("the list could not be finished: {error}")).into_response(),
    }
}

fn no_slot(what: &str) -> ApiError {
    let text = format!(
        "this user's share of {what} under way was in use for {} s (answers that are not read count); ask again",
        PLACE_LIMIT.as_secs()
    );
    ApiError::of(Code::TooManyRequests, text)
}
