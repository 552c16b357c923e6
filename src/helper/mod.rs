//! attachd-helper: the five things for which attachd needs root, and nothing else.
//!
//! A connection carries one request line and one line of JSON as the answer: `{"ok":true,…}`, or
//! `{"ok":false,"code":"…","error":"…"}`. There is no configuration. A permitted caller can choose one of five
//! commands, and nothing more.
//!
//! | line | does | answers |
//! |---|---|---|
//! | `retrigger <serial>` | has udev mark (or un-mark) the one disk with that serial | `devices` |
//! | `holders <maj:min>` | returns which NBD clients have that disk open | `open`, `clients`, `exact` |
//! | `exclusive <maj:min> <serial>` | checks whether a marked disk can be opened exclusively | `diskseq` |
//! | `reload` | sends SIGHUP to nbd-server's main process | `pid` |
//! | `host-disks` | records which disks are the host's own | `serials`, `disks`, `added` |

mod exclusive;
mod holders;
mod host_disks;
mod reload;
mod retrigger;
mod server;
mod servers;
mod sockets;

use std::io::{self, Write};

use serde_json::{Value, json};

use crate::device::DevNum;
use crate::device::found::Found;
use crate::reason::HelperCode;
pub use server::run;

/// The user that may send requests, besides root.
const CALLER: &str = "attachd";

/// The answer to a request that failed: a code for attachd and a sentence for people.
#[derive(Debug)]
struct ErrorAnswer(HelperCode, String);

impl From<io::Error> for ErrorAnswer {
    fn from(error: io::Error) -> Self {
        Self(HelperCode::Failed, error.to_string())
    }
}

/// Carries out the request in this line, if the line is spelled exactly as a request.
fn perform(line: &[u8]) -> Result<Value, ErrorAnswer> {
    let text = line.strip_suffix(b"\n").and_then(|line| str::from_utf8(line).ok()).unwrap_or_default();
    let words: Vec<&str> = text.split(' ').collect();
    match words[..] {
        ["retrigger", serial] if let Ok(serial) = serial.parse() => retrigger::retrigger(serial),
        ["holders", number] if let Some(devnum) = devnum(number) => holders::holders(devnum),
        ["exclusive", number, serial] if let (Some(devnum), Ok(serial)) = (devnum(number), serial.parse()) => {
            exclusive::exclusive(devnum, serial)
        }
        ["reload"] => reload::reload(),
        ["host-disks"] => host_disks::host_disks(),
        _ => {
            let verbs = "retrigger <serial>, holders <number>, exclusive <number> <serial>, reload or host-disks";
            Err(ErrorAnswer(HelperCode::BadRequest, format!("a request is one line: {verbs}")))
        }
    }
}

/// Parses a device number in its exact spelling.
fn devnum(text: &str) -> Option<DevNum> {
    text.parse().ok().filter(|devnum| DevNum::to_string(devnum) == text)
}

/// Returns what was found, or a refusal if it is absent or unknown.
fn here<T>(found: Found<T>, what: &str) -> Result<T, ErrorAnswer> {
    match found {
        Found::Here(found) => Ok(found),
        Found::Gone => Err(ErrorAnswer(HelperCode::NotPresent, format!("{what} is not there"))),
        Found::Unknown(why) => Err(ErrorAnswer(HelperCode::Unread, format!("{what} could not be read: {why}"))),
    }
}

/// Writes the answer's line.
fn render(outcome: Result<Value, ErrorAnswer>) -> String {
    let mut answer = outcome.unwrap_or_else(|ErrorAnswer(code, error)| json!({ "code": code, "error": error }));
    answer["ok"] = answer.get("code").is_none().into();
    format!("{answer}\n")
}

/// Writes one line to the journal. Continues if the journal is not available.
pub fn journal(line: &str) {
    // This is one write, because a caller waits for the answer that follows.
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn is_bad(line: &[u8]) -> bool {
        matches!(perform(line), Err(ErrorAnswer(HelperCode::BadRequest, _)))
    }

    #[test]
    fn a_line_that_is_not_spelled_exactly_as_a_request_is_refused() {
        for bad in [
            "",
            "reload",
            "\n",
            " \n",
            "reload \n",
            " reload\n",
            "RELOAD\n",
            "reload now\n",
            "reload\nreload\n",
            "reload\0\n",
            "holders\n",
            "holders +7:1\n",
            "holders 7:01\n",
            "holders 7:1 7:2\n",
            "holders  7:1\n",
            "holders 7:4294967296\n",
            "holders /dev/loop0\n",
            "exclusive\n",
            "exclusive 7:1\n",
            "exclusive b3bb93101b594f6297e8\n",
            "exclusive b3bb93101b594f6297e8 7:1\n",
            "exclusive 7:01 b3bb93101b594f6297e8\n",
            "exclusive 7:1 B3BB93101B594F6297E8\n",
            "exclusive 7:1 ../../../etc/passwd\n",
            "exclusive 7:1 b3bb93101b594f6297e8 b3bb93101b594f6297e8\n",
            "exclusive /dev/vda b3bb93101b594f6297e8\n",
            "retrigger\n",
            "retrigger ../../../etc/passwd\n",
            "retrigger b3bb93101b594f6297e\n",
            "retrigger b3bb93101b594f6297e80\n",
            "retrigger B3BB93101B594F6297E8\n",
            "retrigger b3bb93101b594f6297e8\r\n",
        ] {
            assert!(is_bad(bad.as_bytes()), "{bad:?}");
        }
        assert!(is_bad(b"\xff\xfe\n"));
    }

    /// The program that runs as root must be small enough for one person to read it in one session.
    #[test]
    fn it_has_less_than_500_lines_of_code() {
        let files = [
            include_str!("mod.rs"),
            include_str!("exclusive.rs"),
            include_str!("holders.rs"),
            include_str!("host_disks.rs"),
            include_str!("reload.rs"),
            include_str!("retrigger.rs"),
            include_str!("server.rs"),
            include_str!("servers.rs"),
            include_str!("sockets.rs"),
            include_str!("../bin/attachd-helper.rs"),
        ];
        let without_tests = files.map(|text| text.split("#[cfg(test)]").next().unwrap_or_default());
        let is_code = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with("//");
        let lines = without_tests.iter().flat_map(|text| text.lines()).filter(is_code).count();
        assert!(lines < 500, "{lines}");
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_request_by_chance(line in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(is_bad(&line));
        }
    }
}
