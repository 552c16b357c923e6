//! `reload`: sends SIGHUP to nbd-server's main process, and to no other process.

use std::path::Path;
use std::{fs, io};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::{Value, json};

use super::{ErrorAnswer, HelperCode};
use crate::place::small_file;

/// The pid file that nbd-server writes.
const PID_FILE: &str = "/run/attachd-nbd-server/nbd-server.pid";

pub(super) fn reload() -> Result<Value, ErrorAnswer> {
    let no_server = |error: io::Error| ErrorAnswer(HelperCode::NoServer, format!("no process of {PID_FILE}: {error}"));
    let pid = pid().map_err(no_server)?;
    // The pidfd is opened before the checks. In the other order the number could pass to another process in between.
    let handle = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| no_server(error.into()))?;
    let process = Path::new("/proc").join(pid.to_string());
    let exe = fs::read_link(process.join("exe")).map_err(no_server)?;
    check(&exe.to_string_lossy(), &String::from_utf8_lossy(&fs::read(process.join("status"))?))?;
    pidfd_send_signal(&handle, Signal::HUP).map_err(|error| no_server(error.into()))?;
    Ok(json!({ "pid": pid.as_raw_nonzero() }))
}

/// Reads the pid file. The server can write in that folder, so a pipe or a symlink in its place must be refused.
fn pid() -> io::Result<Pid> {
    let text = small_file(Path::new(PID_FILE), 32)?;
    let number = str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
    number
        .filter(|number| *number > 0)
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::other("there is no number in it"))
}

/// Checks that the process is an nbd-server that catches SIGHUP. SIGHUP would kill any other process: a child that
/// serves a client, a server that is still starting, or another program.
fn check(exe: &str, status: &str) -> Result<(), ErrorAnswer> {
    // An upgrade may have replaced the program file of a running server.
    if !exe.strip_suffix(" (deleted)").unwrap_or(exe).ends_with("/nbd-server") {
        return Err(ErrorAnswer(HelperCode::NoServer, format!("the process of {PID_FILE} is {exe}, not nbd-server")));
    }
    let caught = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigCgt:")?.trim(), 16).ok());
    let why = "this nbd-server would die of SIGHUP: it only starts yet, or is not the main process";
    caught.filter(|mask| mask & 1 == 1).map(drop).ok_or_else(|| ErrorAnswer(HelperCode::NotListening, why.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_nbd_server_that_catches_sighup_gets_one() {
        let code = |exe, mask| check(exe, &format!("Name:\tx\nSigCgt:\t{mask}\n")).map_err(|refusal| refusal.0);
        assert_eq!(code("/usr/bin/nbd-server", "0000000000014201"), Ok(()));
        assert_eq!(code("/usr/bin/nbd-server (deleted)", "0000000000014201"), Ok(()));
        assert_eq!(code("/usr/bin/nbd-server", "0000000100000200"), Err(HelperCode::NotListening), "a child");
        assert_eq!(code("/usr/bin/nbd-server", "x"), Err(HelperCode::NotListening));
        assert_eq!(code("/usr/bin/not-nbd-server", "0000000000014201"), Err(HelperCode::NoServer));
        assert_eq!(code("/usr/bin/nbd-server/sh", "0000000000014201"), Err(HelperCode::NoServer));
    }
}
