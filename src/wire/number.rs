//! Reads whole numbers as callers write them.

use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// Reads an optional field with a whole number: in JSON `7`, `7.0` and `70e-1` are the same number. Reads exactly, to
/// the last digit.
pub(super) fn whole<'de, N: TryFrom<u64>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<N>, D::Error> {
    let text = Option::<&RawValue>::deserialize(deserializer)?.map(RawValue::get);
    // `null` means the same as an absent field.
    text.filter(|text| *text != "null").map(number).transpose()
}

/// Reads a whole number in a query string.
pub(crate) fn whole_in_query<'de, N: TryFrom<u64>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<N>, D::Error> {
    let text = String::deserialize(deserializer)?;
    number(&text).map(Some)
}

/// Reads an optional field with a whole number that may be negative.
pub(crate) fn whole_or_negative<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    let text = Option::<&RawValue>::deserialize(deserializer)?.map(RawValue::get);
    let number = |text: &str| {
        let (sign, amount) = text.strip_prefix('-').map_or((1, text), |amount| (-1, amount));
        let number = exactly(amount).and_then(|amount| i64::try_from(sign * i128::from(amount)).ok());
        let shown: String = text.chars().take(40).collect();
        number.ok_or_else(|| D::Error::custom(format!("{shown} is not a whole number of 64 bits with a sign")))
    };
    text.filter(|text| *text != "null").map(number).transpose()
}

fn number<N: TryFrom<u64>, E: Error>(text: &str) -> Result<N, E> {
    let number = exactly(text).and_then(|number| N::try_from(number).ok());
    let shown: String = text.chars().take(40).collect();
    let largest = if size_of::<N>() < 8 { u64::from(u32::MAX) } else { u64::MAX };
    number.ok_or_else(|| E::custom(format!("{shown} is not a whole number from 0 to {largest}")))
}

/// Returns the whole number that a decimal number equals, if it is one.
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Deserialize)]
    struct Sample {
        #[serde(deserialize_with = "whole")]
        size: Option<u64>,
    }

    #[test]
    fn a_whole_number_is_read_in_every_json_spelling() {
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
        let wish: Sample = serde_json::from_str(r#"{"size": 9007199254740993.0}"#).unwrap();
        assert_eq!(wish.size, Some(9_007_199_254_740_993), "to the last digit");
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
