//! The API's listening sockets: the Unix socket, and TCP if it is wanted.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::task::{Context, Poll};

use anyhow::Context as _;
use rustix::net::AddressFamily;
use tokio::net::{TcpStream, UnixListener, UnixStream};

use super::connection::{Connection, Socket, hung_up};
use super::error::ApiError;
use super::shares::Owner;
use super::tcp::{Admitted, Site, TcpDoor};
use crate::config::{self, ApiSettings};
use crate::reason::Code;
use crate::remote::Remote;
use crate::wire::{ListenerHealth, ListenerOrigin};

/// The sockets.
pub struct Listeners {
    unix: UnixListener,
    doors: Vec<TcpDoor>,
    shown: Shown,
    /// At which socket to look first for the next connection, so that none is forgotten while another is busy.
    next: usize,
}

/// What health shows of the listeners. It does not change while attachd runs.
#[derive(Clone, Default)]
pub struct Shown {
    pub(super) listeners: Vec<ListenerHealth>,
    /// What is wrong.
    problems: Vec<(Code, String)>,
    /// What was read from files, which can change.
    remotes: Vec<Remote>,
}

impl Shown {
    /// Returns what is wrong now.
    pub(super) fn problems(&self) -> Vec<(Code, String)> {
        let of_files = self.remotes.iter().filter_map(Remote::trouble);
        let of_files = of_files.map(|why| (Code::ApiFiles, format!("the API's files cannot be used: {why}")));
        self.problems.iter().cloned().chain(of_files).collect()
    }
}

/// A client who has come in.
pub(super) struct Visitor {
    pub(super) connection: Connection,
    /// The user; `None`: unknown.
    pub(super) uid: Option<u32>,
    /// Whose share counts.
    pub(super) owner: Owner,
    /// The TCP listener; `None`: the Unix socket.
    pub(super) site: Option<Site>,
}

/// Somebody who has connected: a visitor, or a connection and what to answer.
pub(super) type Arrival = Result<Visitor, (Connection, ApiError)>;

enum Accepted {
    Unix(UnixStream),
    Tcp(usize, TcpStream, SocketAddr),
}

impl Listeners {
    /// Takes the sockets that systemd hands over. A Unix socket that is not among them is bound here, and so is
    /// `[api] tcp` if there is no TCP socket among them. An error means that there is no Unix socket; what is wrong with
    /// TCP is no reason not to start, and health says it.
    pub fn open(settings: &ApiSettings) -> anyhow::Result<Self> {
        let (mut unix, mut tcp) = (None, Vec::new());
        for socket in inherited()? {
            match rustix::net::getsockname(&socket)?.address_family() {
                AddressFamily::UNIX => unix = unix.or(Some(socket)),
                _ => tcp.push(socket),
            }
        }
        let origin = |from_systemd| if from_systemd { ListenerOrigin::Systemd } else { ListenerOrigin::Attachd };
        let path = settings.socket.display().to_string();
        let mut shown = Shown::default();
        shown.listeners.push(ListenerHealth { address: path, from: origin(unix.is_some()), tls: false });
        let unix = match unix {
            Some(socket) => from_systemd(socket)?,
            None => {
                bind(&settings.socket).with_context(|| format!("cannot listen on {}", settings.socket.display()))?
            }
        };
        let handed_over = !tcp.is_empty();
        let mut opened: Vec<io::Result<TcpDoor>> =
            tcp.into_iter().map(|socket| TcpDoor::inherited(socket, settings)).collect();
        match settings.tcp {
            Some(address) if !handed_over => opened.push(
                TcpDoor::bind(address, settings)
                    .map_err(|error| io::Error::new(error.kind(), format!("{address}: {error}"))),
            ),
            _ => {}
        }
        let mut doors = Vec::new();
        for opened in opened {
            match opened {
                Ok(door) => {
                    let address = door.address().to_string();
                    let tls = door.remote().is_some();
                    shown.listeners.push(ListenerHealth { address, from: origin(handed_over), tls });
                    shown.remotes.extend(door.remote().cloned());
                    doors.push(door);
                }
                Err(error) => {
                    let message = format!("the API is not served over TCP: {error}");
                    tracing::error!("{message}");
                    shown.problems.push((Code::TcpNotServed, message));
                }
            }
        }
        if let Some(address) = settings.tcp
            && handed_over
            && !doors.iter().any(|door| door.address() == address)
        {
            let taken: Vec<String> = doors.iter().map(|door| door.address().to_string()).collect();
            let message = format!(
                "[api] tcp is {address}, and systemd hands over {}: the latter is served",
                if taken.is_empty() { "another address".to_owned() } else { taken.join(", ") }
            );
            shown.problems.push((Code::TcpDiffers, message));
        }
        Ok(Self { unix, doors, shown, next: 0 })
    }

    /// Returns what health shows.
    pub fn shown(&self) -> Shown {
        self.shown.clone()
    }

    /// Returns the next client.
    pub(super) async fn accept(&mut self) -> io::Result<Arrival> {
        let accepted = std::future::poll_fn(|cx| self.poll_accept(cx)).await?;
        Ok(match accepted {
            Accepted::Unix(stream) => {
                let uid = stream.peer_cred().ok().map(|credentials| credentials.uid());
                let owner = uid.map_or(Owner::Unknown, Owner::User);
                Ok(Visitor { connection: Connection::new(Socket::Unix(stream)), uid, owner, site: None })
            }
            Accepted::Tcp(door, stream, theirs) => {
                // Whether the connection is over is looked at last: as long as it is not, nobody else has its addresses.
                let judged = self.doors[door].judge(&stream, theirs);
                let judged = judged.and_then(|who| if hung_up(&stream) { Err(TcpDoor::over()) } else { Ok(who) });
                let connection = Connection::new(Socket::Tcp(stream));
                match judged {
                    Ok(Admitted { uid, owner, site }) => Ok(Visitor { connection, uid, owner, site: Some(site) }),
                    Err(refusal) => Err((connection, refusal)),
                }
            }
        })
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        let sockets = self.doors.len() + 1;
        for turn in 0..sockets {
            let socket = (self.next + turn) % sockets;
            let accepted = match socket.checked_sub(1) {
                None => self.unix.poll_accept(cx).map_ok(|(stream, _)| Accepted::Unix(stream)),
                Some(door) => {
                    self.doors[door].poll_accept(cx).map_ok(|(stream, theirs)| Accepted::Tcp(door, stream, theirs))
                }
            };
            if accepted.is_ready() {
                self.next = (socket + 1) % sockets;
                return accepted;
            }
        }
        Poll::Pending
    }
}

/// Returns the sockets that systemd hands over.
fn inherited() -> io::Result<Vec<OwnedFd>> {
    // SAFETY: systemd has opened these descriptors for this process (LISTEN_PID is this process), and nothing else
    // takes them: this function is called once, at the start.
    let own = |fd: RawFd| unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(sd_notify::listen_fds()?.map(own).collect())
}

fn from_systemd(socket: OwnedFd) -> io::Result<UnixListener> {
    let socket = std::os::unix::net::UnixListener::from(socket);
    socket.set_nonblocking(true)?;
    UnixListener::from_std(socket)
}

/// Binds the path. Replaces a socket that a dead daemon left there, and nothing else. Mode 0660, so the group may
/// connect.
fn bind(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    match config::is_dead_socket_of(path, rustix::process::geteuid().as_raw()) {
        Ok(()) => std::fs::remove_file(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let socket = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(socket)
}
