//! Formats numbers for people.

use jiff::{SignedDuration, Timestamp};

const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// Formats a size: `10 GiB` if it is exact, `10.0 GiB` if it is rounded.
pub(super) fn bytes(bytes: u64) -> String {
    let mut unit = usize::try_from(bytes.checked_ilog2().unwrap_or(0) / 10).unwrap_or(0);
    if bytes.is_multiple_of(1 << (10 * unit)) {
        return format!("{} {}", bytes >> (10 * unit), UNITS[unit]);
    }
    let tenths = |unit: usize| (u128::from(bytes) * 10 + (1 << (10 * unit) >> 1)) >> (10 * unit);
    if tenths(unit) == 10240 && unit + 1 < UNITS.len() {
        unit += 1;
    }
    let tenths = tenths(unit);
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// Formats the milliseconds between two times, with one decimal; `-` if a time is unknown.
pub(super) fn milliseconds(from: Option<Timestamp>, to: Option<Timestamp>) -> String {
    let Some((from, to)) = from.zip(to) else { return "-".to_owned() };
    tenths_of(to.duration_since(from), 100) + " ms"
}

/// Formats the time between two steps, in milliseconds as long as the number is short.
pub(super) fn between(from: Option<Timestamp>, to: Option<Timestamp>) -> String {
    let Some((from, to)) = from.zip(to) else { return String::new() };
    let time = to.duration_since(from);
    let (days, hours, minutes) = (time.as_hours() / 24, time.as_hours() % 24, time.as_mins() % 60);
    let text = match time.as_secs() {
        ..10 => tenths_of(time, 100) + " ms",
        10..600 => tenths_of(time, 100_000) + " s",
        600..86_400 => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    };
    if time.is_negative() { text } else { format!("+{text}") }
}

/// Formats a time in tenths of a unit, rounded down. `tenth` is the number of microseconds in a tenth.
fn tenths_of(time: SignedDuration, tenth: i128) -> String {
    let tenths = time.as_micros() / tenth;
    let sign = if tenths < 0 { "-" } else { "" };
    format!("{sign}{}.{}", tenths.abs() / 10, tenths.abs() % 10)
}

/// Cuts a long text after a word.
pub(super) fn shortened(text: &str, longest: usize) -> String {
    if text.chars().count() <= longest {
        return text.to_owned();
    }
    let cut: String = text.chars().take(longest.saturating_sub(1)).collect();
    let whole_words = cut.rfind(' ').map_or(cut.as_str(), |space| &cut[..space]);
    format!("{whole_words}…")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_exact_or_have_a_decimal() {
        for (size, text) in [
            (0, "0 B"),
            (1, "1 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (1025, "1.0 KiB"),
            (10 << 30, "10 GiB"),
            ((10 << 30) + 1, "10.0 GiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            ((1 << 30) - 512, "1.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(size), text, "{size}");
        }
    }

    proptest! {
        #[test]
        fn a_size_never_reads_as_a_thousand_or_more(size in any::<u64>()) {
            let text = bytes(size);
            let number = text.split(' ').next().unwrap();
            prop_assert!(number.parse::<f64>().unwrap() < 1024.0, "{}", text);
        }

        #[test]
        fn any_two_moments_and_any_text_can_be_shown(
            a in any::<i32>(), b in any::<i32>(), text in any::<String>(), longest in 0..40_usize
        ) {
            let [a, b] = [a, b].map(|second| Timestamp::from_second(second.into()).ok());
            milliseconds(a, b);
            between(a, b);
            prop_assert!(shortened(&text, longest).chars().count() <= longest.max(1));
        }
    }

    #[test]
    fn times_between_steps() {
        let start: Timestamp = "2025-01-01T00:00:00Z".parse().unwrap();
        for (micros, text) in [
            (0, "+0.0 ms"),
            (1_250, "+1.2 ms"),
            (9_999_900, "+9999.9 ms"),
            (10_000_000, "+10.0 s"),
            (599_950_000, "+599.9 s"),
            (3_900_000_000, "+1 h 5 min"),
            (2 * 86_400_000_000 + 3_600_000_000, "+2 d 1 h"),
            (-1_500, "-1.5 ms"),
        ] {
            let end = start + SignedDuration::from_micros(micros);
            assert_eq!(between(Some(start), Some(end)), text, "{micros}");
        }
        assert_eq!(between(None, Some(start)), "");
        assert_eq!(milliseconds(Some(start), Some(start + SignedDuration::from_secs(61))), "61000.0 ms");
    }

    #[test]
    fn a_long_text_ends_after_a_word() {
        assert_eq!(shortened("one two", 7), "one two");
        assert_eq!(shortened("one two three", 9), "one two…");
        assert_eq!(shortened("öööööööööö", 4), "ööö…");
    }
}
