//! The helper's socket: which users may send requests, and the limits on time, size and number of requests.

use std::io::{self, Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{panic, thread};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::UCred;

use super::{CALLER, ErrorAnswer, HelperCode, journal, perform, render};
use crate::accounts::id_of;

/// The size limit of a request, in bytes.
const LONGEST: usize = 256;
/// The time limit for receiving a request and for sending an answer.
const LINE: Duration = Duration::from_secs(5);
/// The limit of connections at one time; more connections wait in the socket's queue.
const CONNECTIONS: usize = 16;
/// The idle time after which the program ends. systemd holds the socket and starts the program again.
const IDLE: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };
/// The pause after a failed accept; without a pause the loop would spin.
const PAUSE: Duration = Duration::from_millis(10);

/// Serves the socket from systemd until it is idle for a while. With `--socket <path>` binds that path and never
/// ends.
pub fn run(arguments: &[String]) -> io::Result<()> {
    // attachd must be able to read the files that the helper writes, whatever the umask was.
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
        // At the limit of connections, this waits until one of them ends.
        connections -= ended.iter().take(usize::from(connections == CONNECTIONS)).count();
        let end = end.clone();
        let accepted = listener.accept().and_then(|(stream, _)| {
            let caller = rustix::net::sockopt::socket_peercred(&stream)?;
            // A thread that panics releases its slot too.
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
    // SAFETY: systemd has opened this descriptor for this process (LISTEN_PID is this process), and nothing else
    // takes it: this function is called once, at the start.
    Ok(unsafe { UnixListener::from_raw_fd(fd) })
}

fn serve(mut stream: UnixStream, caller: UCred) {
    let attachd = id_of("/etc/passwd", CALLER).ok();
    let (mut line, why) = (Vec::new(), format!("only {CALLER} and root may ask, not uid {}", caller.uid));
    let mut outcome = Err(ErrorAnswer(HelperCode::NotAllowed, why));
    if caller.uid.is_root() || attachd == Some(caller.uid.as_raw()) {
        line = read_line(&mut stream);
        outcome = perform(&line);
    }
    let shown = String::from_utf8_lossy(&line[..line.len().min(64)]);
    let answer = render(outcome);
    journal(&format!("uid {} pid {} asked {:?}: {}", caller.uid, caller.pid, shown.trim_end(), answer.trim_end()));
    // A caller that has hung up needs no answer.
    let _ = stream.set_write_timeout(Some(LINE)).and_then(|()| stream.write_all(answer.as_bytes()));
}

/// Reads until the end of the line, the limit of bytes or time, or the end of the connection.
fn read_line(stream: &mut UnixStream) -> Vec<u8> {
    let deadline = Instant::now() + LINE;
    let mut line = Vec::new();
    while line.len() <= LONGEST && line.last() != Some(&b'\n') {
        let mut chunk = [0; LONGEST];
        // With no time left the read timeout would be zero, which `set_read_timeout` refuses.
        let left = deadline.saturating_duration_since(Instant::now());
        match stream.set_read_timeout(Some(left)).and_then(|()| stream.read(&mut chunk)) {
            Ok(0) | Err(_) => break,
            Ok(length) => line.extend_from_slice(&chunk[..length]),
        }
    }
    line
}
