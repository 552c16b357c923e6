//! attachd-helper: the four things attachd needs root for, and nothing else.
//!
//! A request is one line, its answer one line of JSON: `{"ok":true,…}`, or `{"ok":false,"code":"…","error":"…"}`.
//!
//! | request | does |
//! |---|---|
//! | `retrigger <serial>` | has udev mark (or un-mark) the one disk with that serial: [`retrigger`] |
//! | `holders <maj:min>` | tells which NBD clients have that disk open: [`holders`] |
//! | `reload` | SIGHUP to nbd-server's main process: [`reload`] |
//! | `host-disks` | writes down which disks this host lives on: [`host_disks`] |
//!
//! What is not a request is answered with `BAD_REQUEST`, and the connection is closed. There is no configuration: who can
//! speak to this program can choose among four verbs, and nothing else.

mod disks;
mod holders;
mod host_disks;
mod reload;
mod retrigger;
mod server;

use std::io::{self, Write};
use std::path::Path;

use serde_json::{Value, json};

use crate::device::DevNum;
use crate::identity::Serial;
pub use server::run;

/// Written by attachd, one file per wanted serial.
const CLAIMS: &str = "/var/lib/attachd/claims";
/// Written here, one file per serial that is never to be exported.
const HOST_DISKS: &str = "/etc/attachd/host-disks";
/// Where nbd-server says which process it is.
const NBD_SERVER_PID: &str = "/run/attachd/nbd-server.pid";
/// The NBD servers' group, to which udev's rules give a claimed disk.
const NBD_GROUP: &str = "attachd-nbd";
/// Who may ask, root apart.
const CALLER: &str = "attachd";

/// What can be asked.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    Retrigger(Serial),
    Holders(DevNum),
    Reload,
    HostDisks,
}

/// What was not done, and why.
#[derive(Debug, thiserror::Error)]
#[error("{code}: {error}")]
struct Refusal {
    code: &'static str,
    error: String,
}

impl Refusal {
    fn new(code: &'static str, error: impl Into<String>) -> Self {
        Self { code, error: error.into() }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::new("FAILED", error.to_string())
    }
}

/// A request, in its one spelling.
fn parse(line: &[u8]) -> Option<Request> {
    let words: Vec<&str> = str::from_utf8(line).ok()?.split(' ').collect();
    match words[..] {
        ["retrigger", serial] => serial.parse().ok().map(Request::Retrigger),
        ["holders", number] => {
            let devnum: DevNum = number.parse().ok()?;
            (devnum.to_string() == number).then_some(Request::Holders(devnum))
        }
        ["reload"] => Some(Request::Reload),
        ["host-disks"] => Some(Request::HostDisks),
        _ => None,
    }
}

fn perform(request: &Request) -> Result<Value, Refusal> {
    match request {
        Request::Retrigger(serial) => retrigger::retrigger(*serial),
        Request::Holders(devnum) => holders::holders(*devnum),
        Request::Reload => reload::reload(),
        Request::HostDisks => host_disks::host_disks(),
    }
}

/// The answer's line.
fn render(outcome: Result<Value, Refusal>) -> Value {
    match outcome {
        Ok(mut answer) => {
            answer["ok"] = true.into();
            answer
        }
        Err(Refusal { code, error }) => json!({ "ok": false, "code": code, "error": error }),
    }
}

/// The id of a user or group, from a file in the shape of `/etc/passwd`.
fn id_of(file: &str, name: &str) -> io::Result<u32> {
    let found = std::fs::read_to_string(Path::new(file))?.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    found.ok_or_else(|| io::Error::other(format!("there is no {name} in {file}")))
}

/// One line to the journal. A journal that is away is no reason to stop.
pub fn journal(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_verb_has_one_spelling() {
        let serial = "b3bb93101b594f6297e8";
        assert_eq!(parse(format!("retrigger {serial}").as_bytes()), Some(Request::Retrigger(serial.parse().unwrap())));
        assert_eq!(parse(b"holders 7:1000"), Some(Request::Holders(DevNum { major: 7, minor: 1000 })));
        assert_eq!(parse(b"reload"), Some(Request::Reload));
        assert_eq!(parse(b"host-disks"), Some(Request::HostDisks));
        for bad in [
            "",
            " ",
            "reload ",
            " reload",
            "RELOAD",
            "reload now",
            "reload\0",
            "holders",
            "holders +7:1",
            "holders 7:01",
            "holders 7:1 7:2",
            "holders  7:1",
            "holders 7:4294967296",
            "holders /dev/loop0",
            "retrigger",
            "retrigger ../../../etc/passwd",
            "retrigger b3bb93101b594f6297e",
            "retrigger b3bb93101b594f6297e80",
            "retrigger B3BB93101B594F6297E8",
            "retrigger b3bb93101b594f6297e8\r",
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(parse(b"\xff\xfe"), None);
    }

    #[test]
    fn an_id_is_found_by_the_whole_name_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("group");
        std::fs::write(&file, "attachd-nbd-x:x:1:\nattachd-nbd:x:990:\nbroken\nattachd-nbd:x:991:\n").unwrap();
        assert_eq!(id_of(file.to_str().unwrap(), "attachd-nbd").unwrap(), 990);
        assert!(id_of(file.to_str().unwrap(), "attachd").is_err());
        assert!(id_of(file.to_str().unwrap(), "broken").is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(line in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&line);
        }
    }
}
