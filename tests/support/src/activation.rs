//! What systemd gives a service: a listening socket that outlives the service, and a socket for `READY=1`.

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, Mode, chmodat, chownat};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, recv, socket};
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::people;
use crate::watch::readable;

/// The API's sockets as attachd.socket and attachd-tcp.socket hold them: they stay over restarts, and connections wait in
/// their queues in between.
#[derive(Debug)]
pub struct HeldSocket(pub(crate) Vec<OwnedFd>);

impl HeldSocket {
    pub(crate) fn listen(path: &Path) -> Result<HeldSocket> {
        let _ = fs::remove_file(path);
        let held = socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
        rustix::io::fcntl_setfd(&held, rustix::io::FdFlags::CLOEXEC)?;
        bind(&held, &SocketAddrUnix::new(path)?).with_context(|| format!("binding {}", path.display()))?;
        own(path)?;
        listen(&held, 128)?;
        Ok(HeldSocket(vec![held]))
    }

    /// Listens at this TCP address, too.
    pub fn and_tcp(mut self, address: SocketAddr) -> Result<HeldSocket> {
        let listener = TcpListener::bind(address).with_context(|| format!("listening on {address}"))?;
        self.0.push(listener.into());
        Ok(self)
    }

    /// Returns a second handle of the same socket.
    pub(crate) fn try_clone(&self) -> Result<HeldSocket> {
        Ok(HeldSocket(self.0.iter().map(OwnedFd::try_clone).collect::<std::io::Result<_>>()?))
    }
}

/// A stand-in for systemd's notification socket.
#[derive(Debug)]
pub struct NotifySocket {
    socket: OwnedFd,
    path: PathBuf,
}

impl NotifySocket {
    pub(crate) fn new(path: &Path) -> Result<NotifySocket> {
        let _ = fs::remove_file(path);
        let socket = socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
        bind(&socket, &SocketAddrUnix::new(path)?).with_context(|| format!("binding {}", path.display()))?;
        own(path)?;
        Ok(NotifySocket { socket, path: path.to_owned() })
    }

    /// Returns the variable for the service's environment.
    pub fn env(&self) -> (String, String) {
        ("NOTIFY_SOCKET".into(), self.path.to_string_lossy().into_owned())
    }

    /// Returns the next message (`READY=1`, `STATUS=…`, `WATCHDOG=1`, several lines possible), or `None` within the
    /// limit.
    pub fn next(&self, limit: Duration) -> Result<Option<String>> {
        if !readable(&[self.socket.as_fd()], limit)? {
            return Ok(None);
        }
        let mut buffer = [0_u8; 8192];
        let (_, length) = recv(&self.socket, &mut buffer[..], rustix::net::RecvFlags::empty())?;
        Ok(Some(String::from_utf8_lossy(&buffer[..length]).into_owned()))
    }

    /// Waits for a message with this line.
    pub fn wait_for(&self, line: &str, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        let mut others = Vec::new();
        while let Some(message) = self.next(deadline.saturating_duration_since(Instant::now()))? {
            if message.lines().any(|l| l == line) {
                return Ok(message);
            }
            others.push(message);
        }
        anyhow::bail!("no {line} within {limit:?}; these came: {others:?}")
    }
}

/// Gives the socket root as owner and attachd's group, as a socket unit does.
fn own(path: &Path) -> Result<()> {
    let group = rustix::fs::Gid::from_raw(people::ATTACHD.id);
    chownat(CWD, path, None, Some(group), AtFlags::empty())?;
    Ok(chmodat(CWD, path, Mode::from_raw_mode(0o660), AtFlags::empty())?)
}
