//! Reads an answer: takes the content out of its envelope, or says why there is none. Pure.

use std::time::Duration;

use jiff::Timestamp;

use super::error::{CallError, Refusal, Sent};
use super::json::{Fields, Object};
use super::refusal::SaidIn;
use super::words::one_line;

/// How long to wait after a 429 if CloudStack does not say.
const PAUSE: Duration = Duration::from_secs(5);

/// The longest wait, whatever CloudStack says.
const LONGEST_PAUSE: Duration = Duration::from_mins(10);

/// An answer as it was received.
#[derive(Debug, Clone, Default)]
pub(super) struct Raw {
    /// The HTTP status.
    pub(super) status: u16,
    /// The server's clock (the header `Date`).
    pub(super) date: Option<Timestamp>,
    /// The header `Retry-After`.
    pub(super) retry_after: Option<String>,
    /// The header `Location`.
    pub(super) location: Option<String>,
    /// The body.
    pub(super) body: Vec<u8>,
}

/// Returns what is in the envelope of this command's answer. `ours`: this host's clock.
pub(super) fn opened(command: &str, raw: &Raw, ours: Timestamp) -> Result<Object, CallError> {
    if raw.status == 429 {
        return Err(CallError::Throttled { after: pause(raw, ours) });
    }
    let content = serde_json::from_slice::<Object>(&raw.body).ok();
    let envelope = content.and_then(|envelope| {
        let name = format!("{}response", command.to_ascii_lowercase());
        let fits = |(key, _): &(&String, _)| [&*name, "errorresponse"].contains(&&*key.to_ascii_lowercase());
        envelope.iter().find(fits).and_then(|(_, inside)| inside.as_object().cloned())
    });
    if let Some(refusal) = envelope.as_ref().and_then(|inside| refused(raw, inside)) {
        return Err(CallError::Refused(refusal.with_clocks(raw.date, ours)));
    }
    match (raw.status, envelope) {
        (200, Some(inside)) => Ok(inside),
        // Another server has answered, for example a gateway. CloudStack may have carried the call out all the same.
        (401 | 407, _) => {
            let words = format!("without a word of CloudStack's: {}", shown(raw));
            Err(CallError::Refused(Refusal::said(SaidIn::Call, 401, None, &words).with_clocks(raw.date, ours)))
        }
        (500..=599, _) => {
            let why = format!("HTTP {}, and nothing of CloudStack's in it: {}", raw.status, shown(raw));
            Err(CallError::Unreachable { sent: Sent::Unclear, why })
        }
        (300..=399, _) => {
            let to = raw.location.as_deref().map_or_else(|| "somewhere else".to_owned(), one_line);
            let what = format!("HTTP {} leads to {to}: name the right address in [cloudstack] url", raw.status);
            Err(CallError::NotUnderstood { what })
        }
        (200, None) => Err(CallError::NotUnderstood { what: format!("no answer to {command}: {}", shown(raw)) }),
        (status, _) => {
            let what = format!("HTTP {status}: {}. Is [cloudstack] url the address of the API?", shown(raw));
            Err(CallError::NotUnderstood { what })
        }
    }
}

/// Returns the beginning of the body, for a message.
fn shown(raw: &Raw) -> String {
    let start = raw.body.get(..200).unwrap_or(&raw.body);
    let words = one_line(&String::from_utf8_lossy(start));
    if words.is_empty() { "it is empty".to_owned() } else { words }
}

/// Returns the refusal, if the content is one.
fn refused(raw: &Raw, inside: &Object) -> Option<Refusal> {
    if raw.status == 200 && !inside.contains_key("errorcode") {
        return None;
    }
    let http = inside.number("errorcode").and_then(|code| u16::try_from(code).ok()).unwrap_or(raw.status);
    Some(Refusal::said(SaidIn::Call, http, cs_code(inside), &inside.text("errortext").unwrap_or_default()))
}

/// Returns CloudStack's own error code.
pub(super) fn cs_code(inside: &Object) -> Option<u32> {
    inside.number("cserrorcode").and_then(|code| u32::try_from(code).ok())
}

/// Returns how long CloudStack asks to wait: the header has seconds, or a time by the server's clock.
fn pause(raw: &Raw, ours: Timestamp) -> Duration {
    let Some(text) = raw.retry_after.as_deref().map(str::trim) else { return PAUSE };
    let until = |moment: Timestamp| moment.duration_since(raw.date.unwrap_or(ours));
    let pause = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => match moment(text).map(until) {
            // A time in the past: no wait.
            Some(wait) => Duration::try_from(wait).unwrap_or_default(),
            None => PAUSE,
        },
    };
    pause.min(LONGEST_PAUSE)
}

/// Parses a time as HTTP headers write it.
pub(super) fn moment(text: &str) -> Option<Timestamp> {
    Some(jiff::fmt::rfc2822::parse(text).ok()?.timestamp())
}

#[cfg(test)]
mod tests {
    use super::super::error::RefusalKind;
    use super::*;
    use proptest::prelude::*;

    fn ours() -> Timestamp {
        "2026-11-28T13:00:00Z".parse().unwrap()
    }

    fn answer(status: u16, body: &str) -> Raw {
        Raw { status, body: body.into(), ..Raw::default() }
    }

    fn read(status: u16, body: &str) -> Result<Object, CallError> {
        opened("listVolumes", &answer(status, body), ours())
    }

    #[test]
    fn what_is_in_the_envelope_is_the_answer() {
        assert_eq!(read(200, r#"{"listvolumesresponse":{"count":1}}"#).unwrap().number("count"), Some(1));
        assert!(read(200, r#"{"listvolumesresponse":{}}"#).unwrap().is_empty());
    }

    #[test]
    fn a_refusal_keeps_cloudstacks_words_and_codes() {
        let text = r#"{"listvolumesresponse":{"uuidList":[],"errorcode":431,"cserrorcode":4350,"errortext":"Unable to find volume\n\u001b[31m"}}"#;
        for status in [431, 200] {
            let Err(CallError::Refused(refusal)) = read(status, text) else { panic!("{status}") };
            assert_eq!((refusal.http, refusal.code, refusal.kind), (431, Some(4350), RefusalKind::Gone));
            assert_eq!(refusal.words, "Unable to find volume [31m");
        }
        let other = r#"{"errorresponse":{"errorcode":"432","errortext":"Unknown API command"}}"#;
        assert!(matches!(read(432, other), Err(CallError::Refused(refusal)) if refusal.http == 432));
    }

    #[test]
    fn what_is_not_cloudstacks_answer_is_not_taken_for_one() {
        let unclear = |status, body: &str| read(status, body).unwrap_err().may_be_done();
        for body in ["", "<html>", "null", "[]", "{}", "7", r#"{"listvolumesresponse":7}"#, r#"{"otherresponse":{}}"#] {
            assert!(matches!(read(200, body), Err(CallError::NotUnderstood { .. })), "{body}");
            assert!(unclear(200, body) && unclear(502, body) && unclear(404, body), "{body}");
        }
        // Cut off in the middle of it.
        assert!(matches!(read(200, r#"{"listvolumesresponse":{"count":1"#), Err(CallError::NotUnderstood { .. })));
        let gateway = read(502, "<html>Bad\u{1b} Gateway</html>").unwrap_err();
        assert!(gateway.to_string().contains("HTTP 502"), "{gateway}");
        let mut moved = answer(301, "");
        moved.location = Some("https://other/client/api".into());
        let moved = opened("listVolumes", &moved, ours()).unwrap_err();
        assert!(moved.to_string().contains("https://other/client/api"), "{moved}");
    }

    #[test]
    fn a_pause_is_taken_from_either_form_of_the_header_and_is_bounded() {
        let wait = |header: Option<&str>, date: Option<&str>| {
            let date = date.and_then(moment);
            let raw = Raw { status: 429, retry_after: header.map(str::to_owned), date, ..Raw::default() };
            match opened("listVolumes", &raw, ours()) {
                Err(CallError::Throttled { after }) => after.as_secs(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(wait(Some("7"), None), 7);
        assert_eq!(wait(Some(" 0 "), None), 0);
        assert_eq!(wait(Some("Sat, 28 Nov 2026 13:00:30 GMT"), None), 30, "by our clock");
        assert_eq!(
            wait(Some("Sat, 28 Nov 2026 14:00:30 GMT"), Some("Sat, 28 Nov 2026 14:00:00 GMT")),
            30,
            "by its own"
        );
        assert_eq!(wait(Some("Sat, 28 Nov 2026 12:00:00 GMT"), None), 0, "it is past");
        for odd in ["", "soon", "-7", "1.5", "99999999999999999999999"] {
            assert_eq!(wait(Some(odd), None), PAUSE.as_secs(), "{odd}");
        }
        assert_eq!(wait(None, None), PAUSE.as_secs());
        assert_eq!(wait(Some("86400"), None), LONGEST_PAUSE.as_secs());
        assert_eq!(wait(Some("Sat, 28 Nov 2099 13:00:30 GMT"), None), LONGEST_PAUSE.as_secs());
    }

    #[test]
    fn whoever_is_not_let_in_hears_of_clocks_that_differ() {
        let text = r#"{"listvolumesresponse":{"errorcode":401,"errortext":"unable to verify user credentials and/or request signature"}}"#;
        let raw = Raw { date: moment("Sat, 28 Nov 2026 13:20:00 GMT"), ..answer(401, text) };
        let Err(CallError::Refused(refusal)) = opened("listVolumes", &raw, ours()) else { panic!() };
        assert_eq!(refusal.kind, RefusalKind::NotLetIn);
        assert!(refusal.hint.unwrap().contains("1200 s behind"));
        assert!(
            matches!(read(401, "<html>"), Err(CallError::Refused(refusal)) if refusal.kind == RefusalKind::NotLetIn)
        );
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_reader_panic(
            status in prop_oneof![Just(200u16), any::<u16>()],
            body in prop_oneof![
                any::<Vec<u8>>(),
                "\\{\"listvolumesresponse\":\\{\"errorcode\":(-?[0-9]{1,30}|null|\"[0-9a-z]{0,5}\")\\}\\}".prop_map(String::into_bytes),
                Just(vec![b'['; 100_000]),
            ],
            header in any::<Option<String>>(),
        ) {
            let raw = Raw { status, body, retry_after: header.clone(), location: header, date: None };
            let _ = opened("listVolumes", &raw, ours());
        }
    }
}
