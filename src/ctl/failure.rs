//! What goes wrong: a sentence for people, an object for programs, a status for scripts.

use std::{fmt, io};

use serde_json::{Value, json};

use crate::identity::VolumeId;
use crate::reason::{Code, Named};
use crate::volume::State;
use crate::wire::{ErrorBody, Standing};

/// Done.
pub(super) const DONE: u8 = 0;
/// Refused by attachd, or failed.
pub(super) const FAILED: u8 = 1;
/// The time ended before the state was reached.
pub(super) const TIMED_OUT: u8 = 3;
/// The time ended, and the volume is refused.
pub(super) const REFUSED: u8 = 4;
/// attachd cannot be reached.
pub(super) const UNREACHABLE: u8 = 5;

/// Why a command did not do what was asked for.
#[derive(Debug)]
pub(super) enum Failure {
    /// There is something to say about it.
    Told {
        /// The exit status.
        status: u8,
        /// What to say, in attachd's shape, also when it is attachctl's own.
        body: ErrorBody,
    },
    /// Standard output did not take the result.
    Output(io::Error),
}

impl Failure {
    /// A failure of attachctl's own.
    pub(super) fn new(code: impl Into<Named<Code>>, error: impl Into<String>) -> Self {
        Self::with(FAILED, code, error, json!({}))
    }

    /// A failure with its own exit status and particulars.
    pub(super) fn with(status: u8, code: impl Into<Named<Code>>, error: impl Into<String>, details: Value) -> Self {
        Self::Told { status, body: ErrorBody { error: error.into(), code: code.into(), details } }
    }

    /// An answer that is no success. One that is not attachd's (a proxy's, say) is shown as it is.
    pub(super) fn from_answer(status: u16, text: &str) -> Self {
        match serde_json::from_str(text) {
            Ok(body) => Self::Told { status: FAILED, body },
            Err(_) => Self::with(
                FAILED,
                Code::BadAnswer,
                format!("the answer has status {status} and is not attachd's: {}", text.trim()),
                json!({ "status": status }),
            ),
        }
    }

    /// An answer of attachd's that lacks something, or has it in another way.
    pub(super) fn not_understood(why: impl fmt::Display) -> Self {
        let text = format!("attachd's answer is not understood ({why}); is attachctl of the same version?");
        Self::new(Code::BadAnswer, text)
    }

    /// The waiting ended, and the volume is not where it should be.
    pub(super) fn waited(volume: VolumeId, stands: &Standing, wanted: State, seconds: u32) -> Self {
        let Standing { state, reason } = stands;
        let why = match reason {
            Some(reason) => format!(": {}. {}", reason.message, reason.hint),
            None if *state == State::Waiting => ": no disk with its serial is here yet".to_owned(),
            None => String::new(),
        };
        let text = format!("volume {volume} is {state} after {seconds} s, not {wanted}{why}");
        let (status, code) = match reason {
            Some(reason) if *state == State::Refused => (REFUSED, reason.code.clone()),
            _ if *state == State::Refused => (REFUSED, Code::Refused.into()),
            _ => (TIMED_OUT, Code::WaitTimeout.into()),
        };
        Self::with(status, code, text, json!(stands))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ReasonView;

    fn told(failure: Failure) -> (u8, ErrorBody) {
        match failure {
            Failure::Told { status, body } => (status, body),
            Failure::Output(error) => panic!("{error}"),
        }
    }

    #[test]
    fn attachds_error_passes_as_it_is_and_anything_else_is_shown() {
        let (status, body) = told(Failure::from_answer(409, r#"{"error":"no","code":"X","details":{"a":1},"new":0}"#));
        assert_eq!((status, body.error.as_str(), body.code.name()), (FAILED, "no", "X"));
        assert_eq!(body.details, json!({ "a": 1 }));
        let (status, body) = told(Failure::from_answer(502, "<h1>Bad Gateway</h1>\n"));
        assert_eq!((status, body.code.name()), (FAILED, "BAD_ANSWER"));
        assert!(body.error.contains("502") && body.error.ends_with("<h1>Bad Gateway</h1>"), "{}", body.error);
    }

    #[test]
    fn waiting_in_vain_says_where_the_volume_stands() {
        let volume: VolumeId = "b3bb9310-1b59-4f62-97e8-cefffdfe3804".parse().unwrap();
        let waiting = Standing { state: State::Waiting, reason: None };
        let (status, body) = told(Failure::waited(volume, &waiting, State::Ready, 7));
        assert_eq!((status, body.code.name()), (TIMED_OUT, "WAIT_TIMEOUT"));
        assert_eq!(
            body.error,
            format!("volume {volume} is waiting after 7 s, not ready: no disk with its serial is here yet")
        );

        let reason =
            ReasonView { code: "SIZE_ZERO".into(), message: "/dev/vdb has size 0".into(), hint: "Look.".into() };
        let refused = Standing { state: State::Refused, reason: Some(reason) };
        let (status, body) = told(Failure::waited(volume, &refused, State::Ready, 7));
        assert_eq!((status, body.code.name()), (REFUSED, "SIZE_ZERO"));
        assert_eq!(body.error, format!("volume {volume} is refused after 7 s, not ready: /dev/vdb has size 0. Look."));
        assert_eq!(body.details["reason"]["code"], "SIZE_ZERO");
    }
}
