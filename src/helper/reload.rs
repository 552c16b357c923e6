//! `reload`: SIGHUP to nbd-server's main process, and to no other.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::{Value, json};

use super::{NBD_SERVER_PID, Refusal};

pub(super) fn reload() -> Result<Value, Refusal> {
    let no_server = |why: String| Refusal::new("NO_SERVER", why);
    let text = pid_file().map_err(|error| no_server(format!("cannot read {NBD_SERVER_PID}: {error}")))?;
    let pid = text.trim().parse().ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| no_server(format!("{NBD_SERVER_PID} holds no process id")))?;
    // First the handle, then the looks: the other way round the number could change hands in between.
    let handle = pidfd_open(pid, PidfdFlags::empty())
        .map_err(|error| no_server(format!("the process {pid} of {NBD_SERVER_PID} does not run: {error}")))?;
    let process = Path::new("/proc").join(pid.to_string());
    let exe = fs::read_link(process.join("exe"))?.to_string_lossy().into_owned();
    let status = fs::read_to_string(process.join("status"))?;
    check(&exe, &status).map_err(|(code, why)| Refusal::new(code, format!("the process {pid} {why}")))?;
    pidfd_send_signal(&handle, Signal::HUP).map_err(std::io::Error::from)?;
    Ok(json!({ "pid": pid.as_raw_nonzero() }))
}

/// attachd can write in that folder: neither a pipe nor a link to another file may lead this program astray.
fn pid_file() -> std::io::Result<String> {
    let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed();
    let mut text = String::new();
    File::options().read(true).custom_flags(flags).open(NBD_SERVER_PID)?.take(32).read_to_string(&mut text)?;
    Ok(text)
}

/// SIGHUP kills whatever does not catch it: a child with a client on it, a server that only starts, a stranger.
fn check(exe: &str, status: &str) -> Result<(), (&'static str, String)> {
    // An upgrade has replaced the file of a running server.
    if Path::new(exe.strip_suffix(" (deleted)").unwrap_or(exe)).file_name().is_none_or(|name| name != "nbd-server") {
        return Err(("NO_SERVER", format!("is {exe}, not nbd-server")));
    }
    let caught = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigCgt:")?.trim(), 16).ok());
    match caught {
        Some(mask) if mask & 1 == 1 => Ok(()),
        _ => Err((
            "NOT_LISTENING",
            "does not catch SIGHUP, which would kill it: still starting, or no main process".into(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_nbd_server_that_catches_sighup_gets_one() {
        let code = |exe, mask| check(exe, &format!("Name:\tx\nSigCgt:\t{mask}\n")).map_err(|(code, _)| code);
        assert_eq!(code("/usr/bin/nbd-server", "0000000000014201"), Ok(()));
        assert_eq!(code("/usr/bin/nbd-server (deleted)", "0000000000014201"), Ok(()));
        assert_eq!(code("/usr/bin/nbd-server", "0000000100000200"), Err("NOT_LISTENING"), "a child");
        assert_eq!(code("/usr/bin/nbd-server", "x"), Err("NOT_LISTENING"));
        assert_eq!(code("/usr/bin/not-nbd-server", "0000000000014201"), Err("NO_SERVER"));
        assert_eq!(code("/usr/bin/nbd-server/sh", "0000000000014201"), Err("NO_SERVER"));
    }
}
