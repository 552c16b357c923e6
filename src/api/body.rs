//! Reads what callers send: JSON bodies and query strings. Content-Type is ignored (`curl -d` sends a wrong one).

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::error::ApiError;
use crate::identity::{OperationId, VolumeId};
use crate::reason::Code;

/// A JSON object as the body. [`super::middleware`] has read the bytes.
pub(super) struct JsonBody<T>(pub(super) T);

impl<T: DeserializeOwned> JsonBody<T> {
    /// Reads a body that the caller has taken as bytes.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, ApiError> {
        object(bytes).map(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = Bytes::from_request(request, state).await;
        object(&bytes.map_err(|error| ApiError::of(Code::BadBody, error.body_text()))?).map(Self)
    }
}

fn object<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let refused = |error: &serde_json::Error, syntax: bool| {
        let text = format!("the body cannot be used: {error}");
        let details = json!({ "line": error.line(), "column": error.column() });
        if syntax {
            ApiError::new(Code::BadJson, text, details)
        } else {
            ApiError::new(Code::InvalidBody, text, details)
        }
    };
    match bytes.trim_ascii_start().first() {
        None => return Err(ApiError::of(Code::EmptyBody, "the request has no body; it takes a JSON object")),
        Some(b'{') => {}
        // serde would accept an array as an object whose fields come in source order.
        Some(_) => {
            serde_json::from_slice::<serde::de::IgnoredAny>(bytes).map_err(|error| refused(&error, true))?;
            let text = "the body cannot be used: it takes a JSON object, like {\"volume_id\": \"…\"}";
            return Err(ApiError::new(Code::InvalidBody, text, json!({})));
        }
    }
    serde_json::from_slice(bytes)
        .map_err(|error| refused(&error, error.classify() != serde_json::error::Category::Data))
}

/// The volume id in the path.
pub(super) struct VolumePath(pub(super) VolumeId);

impl<S: Send + Sync> FromRequestParts<S> for VolumePath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let Path(text) = path.map_err(|error| ApiError::of(Code::NotAVolumeId, error.body_text()))?;
        Ok(Self(text.parse()?))
    }
}

/// The operation id in the path.
pub(super) struct OperationPath(pub(super) OperationId);

impl<S: Send + Sync> FromRequestParts<S> for OperationPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let Path(text) = path.map_err(|error| ApiError::of(Code::NotAnOperationId, error.body_text()))?;
        Ok(Self(text.parse()?))
    }
}

/// The query string.
pub(super) struct QueryString<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for QueryString<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let refused = |text: String| ApiError::of(Code::InvalidQuery, text);
        // axum would replace bytes that are not UTF-8 and so read another value.
        if parts.uri.query().is_some_and(|query| !is_text(query)) {
            return Err(refused("the query string is not UTF-8, or has a % without two digits".to_owned()));
        }
        let query = Query::<T>::from_request_parts(parts, state).await;
        query.map(|Query(query)| Self(query)).map_err(|error| refused(error.body_text()))
    }
}

/// The query of a route without parameters. An unknown filter is an error: ignoring it would give a wrong answer.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoQuery {}

fn is_text(query: &str) -> bool {
    let mut bytes = Vec::with_capacity(query.len());
    let mut rest = query.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let (Some(high), Some(low)) = (digit(), digit()) else { return false };
        bytes.extend(u8::try_from(high * 16 + low));
    }
    str::from_utf8(&bytes).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        name: String,
        size: Option<u64>,
    }

    #[test]
    fn only_a_json_object_is_accepted_as_body() {
        let size = |text: &str| object::<Sample>(text.as_bytes()).ok().map(|wish| (wish.name, wish.size));
        assert!(serde_json::from_str::<Sample>(r#"["a", 7]"#).is_ok(), "the control: serde takes it");
        assert_eq!(size(r#"["a", 7]"#), None);
        assert_eq!(size(" \n{\"name\": \"a\", \"size\": null}"), Some(("a".to_owned(), None)));
        for text in ["7", "null", "\"a\"", "{\"name\": \"a\"} {}", "{\"name\": \"a\", \"name\": \"b\"}", "\u{feff}{}"] {
            assert_eq!(size(text), None, "{text}");
        }
    }

    #[test]
    fn a_query_string_that_is_not_utf8_is_refused() {
        assert!(is_text("vm_id=%c3%a4&x=+") && is_text(""));
        for query in ["vm_id=%ff", "vm_id=%zz", "vm_id=%", "vm_id=%4", "vm_id=%ed%a0%80"] {
            assert!(!is_text(query), "{query}");
        }
    }
}
