//! The socket: who may ask, how long a line may take, how many may ask at once.

use std::io::{self, Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::net::UCred;

use super::{CALLER, Refusal, id_of, journal, parse, perform, render};

/// Bytes of a request.
const LONGEST: usize = 256;
/// How long a line may take to come, and an answer to be taken.
const LINE: Duration = Duration::from_secs(5);
/// Connections at one time; more wait in the socket's queue.
const CONNECTIONS: usize = 16;
/// Without work for so long, the program ends: systemd holds the socket and starts it again.
const IDLE: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };
/// Pause after a failed accept: trying again at once would spin.
const PAUSE: Duration = Duration::from_millis(200);

/// Connections that are being served.
static BUSY: Mutex<usize> = Mutex::new(0);
static DONE: Condvar = Condvar::new();

/// One of the places for a connection, given back on drop: also when its thread panics.
struct Place;

impl Place {
    fn take() -> Self {
        let busy = BUSY.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = DONE.wait_while(busy, |busy| *busy >= CONNECTIONS).unwrap_or_else(PoisonError::into_inner);
        *free += 1;
        Self
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *BUSY.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        DONE.notify_one();
    }
}

/// Serves the socket systemd hands over until it was idle for a while, or one of its own for good.
pub fn run(socket: Option<&Path>) -> io::Result<()> {
    // What is written must be readable by attachd, whatever the caller's mask is.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let (listener, idle) = match socket {
        Some(path) => (bind(path)?, None),
        None => (inherited()?, Some(&IDLE)),
    };
    loop {
        match poll(&mut [PollFd::new(&listener, PollFlags::IN)], idle) {
            Ok(0) if *BUSY.lock().unwrap_or_else(PoisonError::into_inner) == 0 => return Ok(()),
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            ready => ready?,
        };
        if let Err(error) = listener.accept().and_then(|(stream, _)| admit(stream)) {
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

fn bind(path: &Path) -> io::Result<UnixListener> {
    if std::fs::symlink_metadata(path).is_ok_and(|there| there.file_type().is_socket()) {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    chown(path, None, Some(id_of("/etc/group", CALLER)?))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Gives an allowed caller a thread. Anybody else gets a refusal, and no place.
fn admit(mut stream: UnixStream) -> io::Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(&stream)?;
    stream.set_write_timeout(Some(LINE))?;
    if !(peer.uid.is_root() || id_of("/etc/passwd", CALLER).is_ok_and(|uid| uid == peer.uid.as_raw())) {
        let refusal = Refusal::new("NOT_ALLOWED", format!("only {CALLER} and root may ask, not uid {}", peer.uid));
        say(peer, "", &format!("{refusal}"));
        // The first bytes into an empty buffer never wait.
        return answer(&mut stream, Err(refusal)).or(Ok(()));
    }
    let place = Place::take();
    thread::Builder::new().spawn(move || {
        let _place = place;
        // A caller who has gone needs no answer.
        let _ = converse(stream, peer);
    })?;
    Ok(())
}

fn converse(mut stream: UnixStream, peer: UCred) -> io::Result<()> {
    let mut received = Vec::new();
    while let Some(line) = next_line(&mut stream, &mut received)? {
        let Some(request) = line.as_deref().and_then(parse) else {
            let line = line.unwrap_or(received);
            let shown = String::from_utf8_lossy(&line[..line.len().min(80)]);
            say(peer, &format!("{shown:?}"), "BAD_REQUEST");
            let error = "a request is one line: retrigger <serial>, holders <major:minor>, reload or host-disks";
            return answer(&mut stream, Err(Refusal::new("BAD_REQUEST", error)));
        };
        let outcome = perform(&request);
        let result = outcome.as_ref().map_or_else(ToString::to_string, ToString::to_string);
        say(peer, &format!("{request:?}"), &result);
        answer(&mut stream, outcome)?;
    }
    Ok(())
}

/// The next line, without its end. `None`: the caller is done. `Some(None)`: what came is no line, or came too slowly.
fn next_line(stream: &mut UnixStream, received: &mut Vec<u8>) -> io::Result<Option<Option<Vec<u8>>>> {
    let deadline = Instant::now() + LINE;
    loop {
        let end = received.iter().position(|byte| *byte == b'\n');
        if end.unwrap_or(received.len()) > LONGEST {
            return Ok(Some(None));
        }
        if let Some(end) = end {
            let mut line: Vec<u8> = received.drain(..=end).collect();
            line.pop();
            return Ok(Some(Some(line)));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let mut chunk = [0; LONGEST];
        // A time limit of zero would mean none.
        let read =
            stream.set_read_timeout(Some(left.max(Duration::from_millis(1)))).and_then(|()| stream.read(&mut chunk));
        match read {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(length) if length > 0 && !left.is_zero() => received.extend_from_slice(&chunk[..length]),
            _ => return Ok((!received.is_empty()).then_some(None)),
        }
    }
}

fn answer(stream: &mut UnixStream, outcome: Result<serde_json::Value, Refusal>) -> io::Result<()> {
    stream.write_all(format!("{}\n", render(outcome)).as_bytes())
}

fn say(peer: UCred, request: &str, result: &str) {
    journal(&format!("uid {} pid {}: {request}: {result}", peer.uid, peer.pid));
}
