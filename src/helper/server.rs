//! The socket: who may ask, how long a line may take, how many may ask at once.

use std::io::{self, Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{panic, thread};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::UCred;

use super::{CALLER, HelperCode, Refusal, journal, perform, render};
use crate::accounts::id_of;

/// Bytes of a request.
const LONGEST: usize = 256;
/// How long a line may take to come, and an answer to be taken.
const LINE: Duration = Duration::from_secs(5);
/// Connections at one time; more wait in the socket's queue.
const CONNECTIONS: usize = 16;
/// Without work for so long, the program ends: systemd holds the socket and starts it again.
const IDLE: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };
/// Pause after a failed accept: trying again at once would spin.
const PAUSE: Duration = Duration::from_millis(10);

/// Serves the socket systemd hands over until it was idle for a while, or with `--socket <path>` one of its own for good.
pub fn run(arguments: &[String]) -> io::Result<()> {
    // What is written must be readable by attachd, whatever the caller's mask is.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let (listener, idle) = match arguments {
        [] => (inherited()?, Some(&IDLE)),
        [option, path] if option == "--socket" => (UnixListener::bind(path)?, None),
        _ => return Err(io::Error::other("usage: attachd-helper [--socket <path>]")),
    };
    let (end, ended) = mpsc::channel();
    let mut connections = 0;
    loop {
        let mut ready = [PollFd::new(&listener, PollFlags::IN)];
        let waiting = rustix::io::retry_on_intr(|| poll(&mut ready, idle))?;
        connections -= ended.try_iter().count();
        if waiting == 0 && connections == 0 {
            return Ok(());
        }
        if waiting == 0 {
            continue;
        }
        // All places taken: who comes next waits until one is free.
        connections -= ended.iter().take(usize::from(connections == CONNECTIONS)).count();
        let end = end.clone();
        let accepted = listener.accept().and_then(|(stream, _)| {
            let caller = rustix::net::sockopt::socket_peercred(&stream)?;
            // Also a thread that fails gives its place back.
            thread::Builder::new().spawn(move || (panic::catch_unwind(move || serve(stream, caller)), end.send(())))
        });
        if let Err(error) = accepted.map(|_| connections += 1) {
            journal(&format!("a connection failed: {error}"));
            thread::sleep(PAUSE);
        }
    }
}

fn inherited() -> io::Result<UnixListener> {
    let fd = sd_notify::listen_fds()?.next();
    let fd = fd.ok_or_else(|| io::Error::other("no socket from systemd: start attachd-helper.socket"))?;
    // SAFETY: systemd has opened this descriptor for this process (LISTEN_PID is ours) and nothing else here takes it:
    // this is called once, at the start.
    Ok(unsafe { UnixListener::from_raw_fd(fd) })
}

fn serve(mut stream: UnixStream, caller: UCred) {
    let attachd = id_of("/etc/passwd", CALLER).ok();
    let (mut line, why) = (Vec::new(), format!("only {CALLER} and root may ask, not uid {}", caller.uid));
    let mut outcome = Err(Refusal(HelperCode::NotAllowed, why));
    if caller.uid.is_root() || attachd == Some(caller.uid.as_raw()) {
        line = read_line(&mut stream);
        outcome = perform(&line);
    }
    let shown = String::from_utf8_lossy(&line[..line.len().min(64)]);
    let answer = render(outcome);
    journal(&format!("uid {} pid {} asked {:?}: {}", caller.uid, caller.pid, shown.trim_end(), answer.trim_end()));
    // A caller who has gone needs no answer.
    let _ = stream.set_write_timeout(Some(LINE)).and_then(|()| stream.write_all(answer.as_bytes()));
}

/// What came until the line's end, the limit of bytes or time, or the end of the connection.
fn read_line(stream: &mut UnixStream) -> Vec<u8> {
    let deadline = Instant::now() + LINE;
    let mut line = Vec::new();
    while line.len() <= LONGEST && line.last() != Some(&b'\n') {
        let mut chunk = [0; LONGEST];
        // No time left is a limit of zero, which is refused.
        let left = deadline.saturating_duration_since(Instant::now());
        match stream.set_read_timeout(Some(left)).and_then(|()| stream.read(&mut chunk)) {
            Ok(0) | Err(_) => break,
            Ok(length) => line.extend_from_slice(&chunk[..length]),
        }
    }
    line
}
