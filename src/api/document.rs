//! The OpenAPI document: what the handlers and [`crate::wire`] declare, and the errors that every request can get.

use std::collections::BTreeSet;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use tokio::sync::Semaphore;
use utoipa::openapi::path::Operation;
use utoipa::openapi::{ContentBuilder, OpenApi as Document, Ref, RefOr, ResponseBuilder};
use utoipa::{OpenApi, ToSchema};

use super::error::ApiError;
use crate::blocking::blocking;
use crate::memory;
use crate::reason::Code;
use crate::wire::ErrorBody;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "attachd",
        description = "From a volume's announcement to its NBD export. Errors are {error, code, details}."
    ),
    components(schemas(ErrorBody))
)]
pub(super) struct Base;

/// The errors that every request can get before its handler runs.
const EVERYWHERE: [Code; 14] = [
    Code::BadHttp,
    Code::BadBody,
    Code::InvalidQuery,
    Code::NotAVolumeId,
    Code::BodyTooSlow,
    Code::BodyTooLarge,
    Code::UriTooLong,
    Code::HeadTooLarge,
    Code::Failed,
    Code::TooManyConnections,
    Code::TooManyListeners,
    Code::TooManyRequests,
    Code::StoreFailed,
    Code::Stopping,
];

/// Makes one document at a time: each takes one and a half megabytes while it is made.
static ONE_AT_A_TIME: Semaphore = Semaphore::const_new(1);

/// Answers with the document; `declared` makes what the handlers declare. Both are made by a thread of their own.
pub(super) async fn written(declared: impl FnOnce() -> Document + Send + 'static) -> Result<Response, ApiError> {
    // The semaphore is never closed.
    let turn = ONE_AT_A_TIME.acquire().await.ok();
    let written = blocking(move || {
        let written = serde_json::to_vec(&complete(declared()));
        memory::give_back();
        // Also a caller who does not wait for the document keeps the turn until it is made.
        drop(turn);
        written
    });
    let bytes = written
        .await
        .and_then(|written| written.map_err(Into::into))
        .map_err(|error| ApiError::failed_for_now(format!("the document cannot be written: {error}; ask again")))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], bytes).into_response())
}

/// Adds to each operation the errors that it does not declare itself.
fn complete(mut document: Document) -> Document {
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete].into_iter().flatten();
        operations.for_each(add_refusals);
    }
    document
}

fn add_refusals(operation: &mut Operation) {
    let statuses: BTreeSet<u16> = EVERYWHERE.iter().filter_map(|code| code.status()).collect();
    for status in statuses {
        let codes = EVERYWHERE.iter().filter(|code| code.status() == Some(status)).map(|code| code.name());
        let refusal = || {
            let body = ContentBuilder::new().schema(Some(Ref::from_schema_name(ErrorBody::name()))).build();
            let codes = codes.collect::<Vec<_>>().join(", ");
            RefOr::T(ResponseBuilder::new().description(codes).content("application/json", body).build())
        };
        operation.responses.responses.entry(status.to_string()).or_insert_with(refusal);
    }
}
