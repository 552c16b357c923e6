//! Failures: a sentence for people, a JSON object for programs, and an exit status for scripts.

use std::{fmt, io};

use serde_json::{Value, json};

use crate::identity::VolumeId;
use crate::reason::{Code, Named};
use crate::volume::State;
use crate::wire::{ErrorBody, WaitTimeoutDetails};

/// Success.
pub(super) const DONE: u8 = 0;
/// attachd refused the request, or something failed.
pub(super) const FAILED: u8 = 1;
/// The time limit passed before the volume reached the state.
pub(super) const TIMED_OUT: u8 = 3;
/// The time limit passed, and the volume is refused.
pub(super) const REFUSED: u8 = 4;
/// attachd cannot be reached.
pub(super) const UNREACHABLE: u8 = 5;
/// The operation was called off.
pub(super) const CANCELLED: u8 = 6;
/// Ctrl-C while waiting, as shells have it: 128 and the signal's number.
pub(super) const INTERRUPTED: u8 = 130;

/// Why a command failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// A failure with a message.
    Reported {
        /// The exit status.
        status: u8,
        /// The message in attachd's format, also for failures of attachctl itself.
        body: ErrorBody,
    },
    /// The result could not be written to standard output.
    Output(io::Error),
}

impl Failure {
    /// Makes a failure of attachctl itself.
    pub(super) fn new(code: impl Into<Named<Code>>, error: impl Into<String>) -> Self {
        Self::with(FAILED, code, error, json!({}))
    }

    /// Makes a failure with an exit status and details.
    pub(super) fn with(status: u8, code: impl Into<Named<Code>>, error: impl Into<String>, details: Value) -> Self {
        Self::Reported { status, body: ErrorBody { error: error.into(), code: code.into(), details } }
    }

    /// Makes a failure from an answer with an error status. An answer that is not attachd's (a proxy's, for instance)
    /// is shown as it is.
    pub(super) fn from_answer(status: u16, text: &str) -> Self {
        match serde_json::from_str(text) {
            Ok(body) => Self::Reported { status: FAILED, body },
            Err(_) => Self::with(
                FAILED,
                Code::BadAnswer,
                format!("the answer has status {status} and is not attachd's: {}", text.trim()),
                json!({ "status": status }),
            ),
        }
    }

    /// Makes a failure for an answer of attachd that lacks a field or has another format.
    pub(super) fn not_understood(why: impl fmt::Display) -> Self {
        let text = format!("attachd's answer is not understood ({why}); is attachctl of the same version?");
        Self::new(Code::BadAnswer, text)
    }

    /// Makes a failure for a volume that did not reach the state in time.
    pub(super) fn waited(volume: VolumeId, stands: &WaitTimeoutDetails, wanted: State, seconds: u32) -> Self {
        let WaitTimeoutDetails { state, reason } = stands;
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

    fn in_words(failure: Failure) -> (u8, ErrorBody) {
        match failure {
            Failure::Reported { status, body } => (status, body),
            Failure::Output(error) => panic!("{error}"),
        }
    }

    #[test]
    fn an_error_of_attachd_is_passed_on_and_any_other_answer_is_quoted() {
        let (status, body) =
            in_words(Failure::from_answer(409, r#"{"error":"no","code":"X","details":{"a":1},"new":0}"#));
        assert_eq!((status, body.error.as_str(), body.code.name()), (FAILED, "no", "X"));
        assert_eq!(body.details, json!({ "a": 1 }));
        let (status, body) = in_words(Failure::from_answer(502, "<h1>Bad Gateway</h1>\n"));
        assert_eq!((status, body.code.name()), (FAILED, "BAD_ANSWER"));
        assert!(body.error.contains("502") && body.error.ends_with("<h1>Bad Gateway</h1>"), "{}", body.error);
    }

    #[test]
    fn a_wait_that_times_out_reports_the_volumes_state_and_reason() {
        let volume: VolumeId = "b3bb9310-1b59-4f62-97e8-cefffdfe3804".parse().unwrap();
        let waiting = WaitTimeoutDetails { state: State::Waiting, reason: None };
        let (status, body) = in_words(Failure::waited(volume, &waiting, State::Ready, 7));
        assert_eq!((status, body.code.name()), (TIMED_OUT, "WAIT_TIMEOUT"));
        assert_eq!(
            body.error,
            format!("volume {volume} is waiting after 7 s, not ready: no disk with its serial is here yet")
        );

        let reason =
            ReasonView { code: "SIZE_ZERO".into(), message: "/dev/vdb has size 0".into(), hint: "Look.".into() };
        let refused = WaitTimeoutDetails { state: State::Refused, reason: Some(reason) };
        let (status, body) = in_words(Failure::waited(volume, &refused, State::Ready, 7));
        assert_eq!((status, body.code.name()), (REFUSED, "SIZE_ZERO"));
        assert_eq!(body.error, format!("volume {volume} is refused after 7 s, not ready: /dev/vdb has size 0. Look."));
        assert_eq!(body.details["reason"]["code"], "SIZE_ZERO");
    }
}
