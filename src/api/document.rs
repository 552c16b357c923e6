//! The OpenAPI document: what the handlers say, the names of [`crate::identity`], and what every request can be answered.

use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::SchemaType;
use utoipa::openapi::{
    ContentBuilder, ObjectBuilder, OpenApi as Document, Ref, RefOr, ResponseBuilder, Schema, SchemaFormat, Type,
};
use utoipa::{OpenApi, PartialSchema, ToSchema};

use super::error::ErrorBody;
use crate::identity::{Serial, VolumeId};

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

fn text(description: &str, pattern: &str, format: Option<SchemaFormat>, example: &str) -> RefOr<Schema> {
    let schema = ObjectBuilder::new()
        .schema_type(SchemaType::new(Type::String))
        .description(Some(description))
        .pattern(Some(pattern))
        .format(format)
        .examples([example]);
    RefOr::T(Schema::Object(schema.build()))
}

impl PartialSchema for VolumeId {
    fn schema() -> RefOr<Schema> {
        let digits = |count| format!("[0-9a-fA-F]{{{count}}}");
        let pattern = format!("^{}-{2}-{2}-{2}-{}$", digits(8), digits(12), digits(4));
        let format = Some(SchemaFormat::Custom("uuid".to_owned()));
        text("A CloudStack volume's UUID, with hyphens.", &pattern, format, "b3bb9310-1b59-4f62-97e8-cefffdfe3804")
    }
}

impl PartialSchema for Serial {
    fn schema() -> RefOr<Schema> {
        let description = "What the volume's disk shows: the UUID without hyphens, its first 20 characters.";
        text(description, "^[0-9a-f]{20}$", None, "b3bb93101b594f6297e8")
    }
}

impl ToSchema for VolumeId {}

impl ToSchema for Serial {}
