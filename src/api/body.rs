//! What callers send: JSON bodies and query strings, whatever Content-Type says (`curl -d` names a wrong one).

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::json;
use serde_json::value::RawValue;

use super::error::ApiError;
use crate::identity::VolumeId;

/// A JSON object as the body, which [`super::front`] has taken in.
pub(super) struct JsonBody<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = Bytes::from_request(request, state).await;
        object(&bytes.map_err(|error| ApiError::bad_request("BAD_BODY", error.body_text()))?).map(Self)
    }
}

fn object<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let refused = |error: &serde_json::Error, syntax: bool| {
        let text = format!("the body cannot be used: {error}");
        let details = json!({ "line": error.line(), "column": error.column() });
        if syntax {
            ApiError::new(StatusCode::BAD_REQUEST, "BAD_JSON", text, details)
        } else {
            ApiError::unprocessable("INVALID_BODY", text, details)
        }
    };
    match bytes.trim_ascii_start().first() {
        None => return Err(ApiError::bad_request("EMPTY_BODY", "the request has no body; it takes a JSON object")),
        Some(b'{') => {}
        // serde takes a list for an object whose fields come in the order of the source.
        Some(_) => {
            serde_json::from_slice::<serde::de::IgnoredAny>(bytes).map_err(|error| refused(&error, true))?;
            let text = "the body cannot be used: it takes a JSON object, like {\"volume_id\": \"…\"}";
            return Err(ApiError::unprocessable("INVALID_BODY", text, json!({})));
        }
    }
    serde_json::from_slice(bytes)
        .map_err(|error| refused(&error, error.classify() != serde_json::error::Category::Data))
}

/// A field that takes a whole number: in JSON `7`, `7.0` and `70e-1` are the same one. Read exactly, to the last digit.
pub(super) fn whole<'de, N: TryFrom<u64>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<N>, D::Error> {
    let text = Option::<&RawValue>::deserialize(deserializer)?.map(RawValue::get);
    // `null` is as good as nothing.
    text.filter(|text| *text != "null").map(number).transpose()
}

/// The same in a query string.
pub(super) fn whole_in_query<'de, N: TryFrom<u64>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<N>, D::Error> {
    let text = String::deserialize(deserializer)?;
    number(&text).map(Some)
}

fn number<N: TryFrom<u64>, E: Error>(text: &str) -> Result<N, E> {
    let number = exactly(text).and_then(|number| N::try_from(number).ok());
    let shown: String = text.chars().take(40).collect();
    let largest = if size_of::<N>() < 8 { u64::from(u32::MAX) } else { u64::MAX };
    number.ok_or_else(|| E::custom(format!("{shown} is not a whole number from 0 to {largest}")))
}

/// The whole number that this decimal number is.
fn exactly(text: &str) -> Option<u64> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let negative = whole.strip_prefix('-');
    let whole = negative.unwrap_or(whole);
    let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !are_digits(whole) || !are_digits(fraction) {
        return None;
    }
    let digits = format!("{whole}{fraction}");
    let significant = digits.trim_end_matches('0');
    if significant.is_empty() {
        return Some(0);
    }
    if negative.is_some() {
        return None;
    }
    let dropped = i64::try_from(digits.len() - significant.len()).ok()?;
    let exponent = exponent.parse::<i64>().ok()?.checked_sub(i64::try_from(fraction.len()).ok()?)?;
    let zeros = u32::try_from(exponent.checked_add(dropped)?).ok()?;
    significant.parse::<u64>().ok()?.checked_mul(10_u64.checked_pow(zeros)?)
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
        let refused = |text: String| ApiError::bad_request("INVALID_QUERY", text);
        // What is no UTF-8 would be read as something else.
        if parts.uri.query().is_some_and(|query| !is_text(query)) {
            return Err(refused("the query string is not UTF-8, or has a % without two digits".to_owned()));
        }
        let query = Query::<T>::from_request_parts(parts, state).await;
        query.map(|Query(query)| Self(query)).map_err(|error| refused(error.body_text()))
    }
}

/// For what takes no query string: a filter that is passed over would give a wrong answer.
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
    use proptest::prelude::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Wish {
        name: String,
        #[serde(default, deserialize_with = "whole")]
        size: Option<u64>,
    }

    #[test]
    fn only_an_object_is_an_object() {
        let size = |text: &str| object::<Wish>(text.as_bytes()).ok().map(|wish| (wish.name, wish.size));
        assert!(serde_json::from_str::<Wish>(r#"["a", 7]"#).is_ok(), "the control: serde takes it");
        assert_eq!(size(r#"["a", 7]"#), None);
        assert_eq!(size(" \n{\"name\": \"a\", \"size\": null}"), Some(("a".to_owned(), None)));
        for text in ["7", "null", "\"a\"", "{\"name\": \"a\"} {}", "{\"name\": \"a\", \"name\": \"b\"}", "\u{feff}{}"] {
            assert_eq!(size(text), None, "{text}");
        }
    }

    #[test]
    fn a_whole_number_may_be_written_in_every_way_json_has() {
        for (text, number) in [
            ("0", Some(0)),
            ("-0.0", Some(0)),
            ("0e999999999999999999999", Some(0)),
            ("189518.0", Some(189_518)),
            ("1e3", Some(1000)),
            ("12.50E+1", Some(125)),
            ("70e-1", Some(7)),
            ("9007199254740993.0", Some(9_007_199_254_740_993)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("1e20", None),
            ("1e999999999999999999999", None),
            ("7.5", None),
            ("1e-1", None),
            ("-1", None),
            ("\"7\"", None),
            ("true", None),
            ("[7]", None),
        ] {
            assert_eq!(exactly(text), number, "{text}");
        }
        let wish: Wish = object(br#"{"name": "a", "size": 9007199254740993.0}"#).unwrap();
        assert_eq!(wish.size, Some(9_007_199_254_740_993), "to the last digit");
    }

    #[test]
    fn a_query_string_that_would_be_read_as_another_is_none() {
        assert!(is_text("vm_id=%c3%a4&x=+") && is_text(""));
        for query in ["vm_id=%ff", "vm_id=%zz", "vm_id=%", "vm_id=%4", "vm_id=%ed%a0%80"] {
            assert!(!is_text(query), "{query}");
        }
    }

    proptest! {
        #[test]
        fn every_number_is_read_as_it_was_written(number in any::<u64>(), zeros in 0_usize..4) {
            prop_assert_eq!(exactly(&number.to_string()), Some(number));
            prop_assert_eq!(exactly(&format!("{number}.{}", "0".repeat(zeros))), Some(number));
            prop_assert_eq!(exactly(&format!("{number}{}e-{zeros}", "0".repeat(zeros))), Some(number));
        }

        #[test]
        fn no_text_makes_the_reader_of_numbers_panic(text in "[-+0-9.eE]{0,30}|\\PC{0,10}") {
            let _ = exactly(&text);
        }
    }
}
