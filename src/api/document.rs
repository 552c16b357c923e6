//! The OpenAPI document: what the handlers and [`crate::wire`] say, and what every request can be answered.

use utoipa::openapi::path::Operation;
use utoipa::openapi::{ContentBuilder, OpenApi as Document, Ref, RefOr, ResponseBuilder};
use utoipa::{OpenApi, ToSchema};

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

/// Refusals that every request can meet, before its handler is asked.
const EVERYWHERE: [(&str, &str); 6] = [
    ("400", "BAD_HTTP, BAD_BODY, INVALID_QUERY, NOT_A_VOLUME_ID"),
    ("408", "BODY_TOO_SLOW"),
    ("413", "BODY_TOO_LARGE"),
    ("414", "URI_TOO_LONG"),
    ("431", "HEAD_TOO_LARGE"),
    ("503", "TOO_MANY_CONNECTIONS, TOO_MANY_LISTENERS, TOO_MANY_REQUESTS, STORE_FAILED, STOPPING: ask again"),
];

/// Adds to each operation what it does not say itself.
pub(super) fn complete(mut document: Document) -> Document {
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete].into_iter().flatten();
        operations.for_each(add_refusals);
    }
    document
}

fn add_refusals(operation: &mut Operation) {
    for (status, codes) in EVERYWHERE {
        let refusal = || {
            let body = ContentBuilder::new().schema(Some(Ref::from_schema_name(ErrorBody::name()))).build();
            RefOr::T(ResponseBuilder::new().description(codes).content("application/json", body).build())
        };
        operation.responses.responses.entry(status.to_owned()).or_insert_with(refusal);
    }
}
