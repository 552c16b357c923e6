//! Whether the NBD server lives: its death by a pidfd, its return by inotify on its pid file. No polling.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::inotify;
use rustix::process::{Pid, PidfdFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

/// What is known of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// It runs.
    Up {
        /// Its process.
        pid: i32,
    },
    /// It does not.
    Down {
        /// Why that is known.
        why: String,
    },
}

/// Follows a server by its pid file.
pub struct Watch {
    pid_file: PathBuf,
    /// What `/proc/<pid>/comm` must say: the number may have gone to another process.
    comm: &'static str,
    changes: AsyncFd<OwnedFd>,
}

impl Watch {
    /// Begins to watch the pid file's folder, which must exist. Needs a tokio runtime.
    pub fn new(pid_file: PathBuf, comm: &'static str) -> io::Result<Self> {
        let folder = pid_file.parent().unwrap_or(Path::new("/"));
        let notify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let written = inotify::WatchFlags::CLOSE_WRITE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&notify, folder, written)
            .map_err(|error| io::Error::other(format!("cannot watch {}: {error}", folder.display())))?;
        Ok(Self { pid_file, comm, changes: register(notify)? })
    }

    /// Sends what the server is now, and again at each change, until the receiver is gone.
    pub async fn follow<Input: From<Server>>(self, states: mpsc::Sender<Input>) {
        loop {
            let (server, death) = match self.find() {
                Ok((pid, death)) => (Server::Up { pid }, Some(death)),
                Err(why) => (Server::Down { why }, None),
            };
            if states.send(server.into()).await.is_err() {
                return;
            }
            tokio::select! {
                () = exit_of(death) => {
                    let why = format!("the process of {} has ended", self.pid_file.display());
                    if states.send(Server::Down { why }.into()).await.is_err() {
                        return;
                    }
                    self.pid_file_written().await;
                }
                () = self.pid_file_written() => {}
            }
        }
    }

    /// The running server's process.
    fn find(&self) -> Result<(i32, AsyncFd<OwnedFd>), String> {
        let file = self.pid_file.display();
        let text = fs::read_to_string(&self.pid_file).map_err(|error| format!("no pid file {file}: {error}"))?;
        let pid = text.trim().parse().ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| format!("{file} holds no process id but {:?}", text.trim()))?;
        let number = pid.as_raw_nonzero().get();
        // First the handle, then the name: the other way round the number could change hands in between.
        let handle = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)
            .map_err(|_| format!("the process {number} of {file} does not run"))?;
        // Hidden from the sandboxed daemon (ProtectProc=invisible); there the unit removes the file when the server ends.
        if let Ok(comm) = fs::read_to_string(format!("/proc/{number}/comm"))
            && comm.trim() != self.comm
        {
            return Err(format!("the process {number} of {file} is {:?}, not {}", comm.trim(), self.comm));
        }
        let handle = register(handle).map_err(|error| error.to_string())?;
        Ok((number, handle))
    }

    /// Waits until somebody has written the pid file (or another file beside it: a look is cheap).
    async fn pid_file_written(&self) {
        let mut buffer = [MaybeUninit::uninit(); 1024];
        loop {
            let Ok(mut ready) = self.changes.readable().await else { return std::future::pending().await };
            let mut reader = inotify::Reader::new(self.changes.get_ref(), &mut buffer);
            let mut ours = false;
            while let Ok(event) = reader.next() {
                let name = event.file_name().map(|name| name.to_bytes().to_vec());
                ours |=
                    name.is_none_or(|name| self.pid_file.file_name().is_some_and(|own| own.as_encoded_bytes() == name));
            }
            ready.clear_ready();
            if ours {
                return;
            }
        }
    }
}

/// A pidfd turns readable when its process ends.
async fn exit_of(process: Option<AsyncFd<OwnedFd>>) {
    match process {
        Some(handle) => drop(handle.readable().await),
        None => std::future::pending().await,
    }
}

fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` keeps its one descriptor open until it is dropped, and nothing takes it out of the `AsyncFd`.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }
        .map_err(|error| io::Error::other(error.to_string()))
}
