//! Watches whether the NBD server runs. A pidfd reports its end, and inotify on its pid file reports its start. There
//! is no polling.
//!
//! If systemd starts a server for each connection, there is no process to watch. Then the watch follows a marker
//! file, which exists as long as systemd holds the port ([`ServerFile::Marker`]).

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use rustix::fs::inotify;
use rustix::process::{Pid, PidfdFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::unit::Explain;
use crate::blocking::blocking;
use crate::limits;
use crate::place;
use crate::readable::register;

/// The known state of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// The server runs.
    Up {
        /// The server's process id; `None`: it is started for each connection.
        pid: Option<i32>,
    },
    /// The server runs but does not answer at its address.
    Silent {
        /// The server's process id.
        pid: Option<i32>,
        /// The error of the last handshake.
        why: String,
    },
    /// The server does not run.
    Down {
        /// How this was seen.
        why: String,
    },
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up { .. } => write!(f, "the NBD server is up"),
            Self::Silent { why, .. } => write!(f, "the NBD server runs, but does not serve: {why}"),
            Self::Down { why } => write!(f, "the NBD server is down: {why}"),
        }
    }
}

/// The file that shows whether the server is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerFile {
    /// A pid file. `/proc/<pid>/comm` must be this name, because the number may belong to another process by now.
    Pid(&'static str),
    /// A marker: the file exists as long as the server is available.
    Marker,
}

/// Watches a server by its file.
pub struct ServerWatch {
    file: PathBuf,
    kind: ServerFile,
    changes: AsyncFd<OwnedFd>,
    /// The inotify watch on the parent of the folder, as long as the folder does not exist; else [`NONE`].
    above: AtomicI32,
    explain: Option<Explain>,
}

/// The size limit of a pid file; no process id is longer.
const PID_FILE_SIZE: u64 = 64;

/// A number that no inotify watch has.
const NONE: i32 = -1;

impl ServerWatch {
    /// Starts to watch the folder of the file, or its parent. One of the two must exist. Needs a tokio runtime.
    pub fn new(file: PathBuf, kind: ServerFile) -> io::Result<Self> {
        let notify = limits::inotify()?;
        let watch = Self { file, kind, changes: register(notify)?, above: AtomicI32::new(NONE), explain: None };
        let folder = watch.folder();
        watch
            .watch_folder()
            .map_err(|error| io::Error::other(format!("cannot watch {}: {error}", folder.display())))?;
        Ok(watch)
    }

    /// Adds to each "down" state what the unit's files and the port show.
    #[must_use]
    pub fn explaining(self, explain: Explain) -> Self {
        Self { explain: Some(explain), ..self }
    }

    /// Returns the state "down" with this reason and whatever explains it.
    async fn down(&self, why: String) -> Server {
        let Some(explain) = self.explain else { return Server::Down { why } };
        let found = blocking(move || explain.words()).await.unwrap_or_default();
        Server::Down { why: if found.is_empty() { why } else { format!("{why}; {found}") } }
    }

    fn folder(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new("/"))
    }

    /// Watches the folder that is at this path now. A repetition changes nothing. If there is no folder, its parent
    /// is watched until the folder is made.
    fn watch_folder(&self) -> io::Result<()> {
        let mut written = inotify::WatchFlags::CLOSE_WRITE | inotify::WatchFlags::MOVED_TO;
        if self.kind == ServerFile::Marker {
            written |= inotify::WatchFlags::CREATE | inotify::WatchFlags::DELETE;
        }
        let gone = inotify::WatchFlags::DELETE_SELF | inotify::WatchFlags::MOVE_SELF;
        let notify = self.changes.get_ref();
        match limits::watch(notify, self.folder(), written | gone) {
            Ok(_) => {
                let above = self.above.swap(NONE, Ordering::Relaxed);
                if above != NONE {
                    // Other changes in the parent do not matter. The watch is gone already if its folder was removed.
                    let _ = inotify::remove_watch(notify, above);
                }
                Ok(())
            }
            Err(error) => {
                let made = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
                let above = self.folder().parent().ok_or(error)?;
                self.above.store(limits::watch(notify, above, made)?, Ordering::Relaxed);
                // The folder may have been made between the failed watch and the watch on its parent.
                let _ = inotify::add_watch(notify, self.folder(), written | gone);
                Ok(())
            }
        }
    }

    /// Sends the state of the server now and after each change, until the receiver is dropped.
    pub async fn follow<Input: From<Server>>(self, states: mpsc::Sender<Input>) {
        let mut failures = 0;
        loop {
            // Another user owns the file, so reading it may block: it is read in a thread of its own.
            let (file, kind) = (self.file.clone(), self.kind);
            let found = blocking(move || find(&file, kind)).await;
            // A failed read does not show that the server is away, so the read is retried.
            let again = found.is_err().then(|| pause(failures));
            failures = if found.is_err() { failures + 1 } else { 0 };
            let found = found.unwrap_or_else(|error| Err(format!("it cannot be looked for: {error}")));
            let (server, death) = match found.and_then(watched) {
                Ok((pid, death)) => (Server::Up { pid }, death),
                Err(why) => (self.down(why).await, None),
            };
            if states.send(server.into()).await.is_err() {
                return;
            }
            tokio::select! {
                () = exit_of(death) => {
                    let why = format!("the process of {} has ended", self.file.display());
                    if states.send(self.down(why).await.into()).await.is_err() {
                        return;
                    }
                    self.file_changed().await;
                }
                () = self.file_changed() => {}
                () = after(again) => {}
            }
        }
    }

    /// Waits until the file is written or its folder is made or removed. May return too early; the caller then reads
    /// the file once more, which is cheap.
    async fn file_changed(&self) {
        let mut buffer = [MaybeUninit::uninit(); 1024];
        let file_name = |path: &Path| path.file_name().map(|name| name.as_encoded_bytes().to_vec());
        let ours = [file_name(&self.file), file_name(self.folder())];
        loop {
            let Ok(mut ready) = self.changes.readable().await else { return std::future::pending().await };
            let mut reader = inotify::Reader::new(self.changes.get_ref(), &mut buffer);
            let mut concerned = false;
            while let Ok(event) = reader.next() {
                let name = event.file_name().map(|name| name.to_bytes().to_vec());
                concerned |= name.is_none() || ours.contains(&name);
            }
            ready.clear_ready();
            if concerned {
                if let Err(error) = self.watch_folder() {
                    tracing::warn!(folder = %self.folder().display(), %error, "cannot watch for the NBD server");
                }
                return;
            }
        }
    }
}

/// Returns the back-off after this many failed reads in a row.
fn pause(failures: u32) -> Duration {
    Duration::from_millis(250 << failures.min(7))
}

async fn after(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}

/// A server that is there: its process id and pidfd, or `None` if there is no process to watch.
type ServerProcess = Option<(i32, OwnedFd)>;

/// Finds the server by its file.
fn find(path: &Path, kind: ServerFile) -> Result<ServerProcess, String> {
    let file = path.display();
    let ServerFile::Pid(expected) = kind else {
        // If attachd cannot read the marker's inode, the marker counts as absent.
        let there = place::Inode::at(path).is_ok();
        return if there { Ok(None) } else { Err(format!("nothing listens: there is no {file}")) };
    };
    let unreadable = |error: io::Error| format!("no pid file {file}: {error}");
    let (bytes, owner) = place::small_file_and_owner(path, PID_FILE_SIZE).map_err(unreadable)?;
    let folder = place::Inode::at(path.parent().unwrap_or(Path::new("/"))).map_err(unreadable)?;
    if owner != place::ROOT && owner != folder.owner {
        return Err(format!("{file} belongs to the user {owner}, who has only put it there"));
    }
    let text = String::from_utf8_lossy(&bytes);
    let pid = text.trim().parse().ok().filter(|number| *number > 0).and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| format!("{file} holds no process id but {:?}", text.trim()))?;
    let number = pid.as_raw_nonzero().get();
    // The pidfd is opened before the name is read. In the other order the number could pass to another process in
    // between.
    let handle = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)
        .map_err(|_| format!("the process {number} of {file} does not run"))?;
    // /proc hides the process from the sandboxed daemon (ProtectProc=invisible). There the unit removes the pid file
    // when the server ends.
    if let Ok(comm) = place::small_file(Path::new(&format!("/proc/{number}/comm")), PID_FILE_SIZE)
        && comm.trim_ascii() != expected.as_bytes()
    {
        let comm = String::from_utf8_lossy(&comm);
        return Err(format!("the process {number} of {file} is {:?}, not {expected}", comm.trim()));
    }
    Ok(Some((number, handle)))
}

/// Registers the pidfd with the runtime, on the runtime's thread.
fn watched(found: ServerProcess) -> Result<(Option<i32>, Option<AsyncFd<OwnedFd>>), String> {
    let Some((pid, handle)) = found else { return Ok((None, None)) };
    let handle = register(handle).map_err(|error| error.to_string())?;
    Ok((Some(pid), Some(handle)))
}

/// Waits until the process ends: its pidfd then becomes readable.
async fn exit_of(process: Option<AsyncFd<OwnedFd>>) {
    match process {
        Some(handle) => drop(handle.readable().await),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::process::{Child, Command};

    struct Sleeper(Child);

    impl Sleeper {
        /// Starts a process and writes its pid file.
        fn new(pid_file: &Path) -> Self {
            let child = Command::new("sleep").arg("1000").spawn().unwrap();
            // exec lets the parent continue a moment before the new name is set. A real server writes its pid file
            // itself.
            while fs::read_to_string(format!("/proc/{}/comm", child.id())).unwrap() != "sleep\n" {
                std::thread::yield_now();
            }
            fs::write(pid_file, format!("{}\n", child.id())).unwrap();
            Self(child)
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    async fn next(states: &mut mpsc::Receiver<Server>, wanted: impl Fn(&Server) -> bool) {
        let found = async {
            while let Some(state) = states.recv().await {
                if wanted(&state) {
                    return;
                }
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), found).await.unwrap();
    }

    #[tokio::test]
    async fn a_server_is_found_again_after_the_folder_of_its_pid_file_was_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("run");
        fs::create_dir(&folder).unwrap();
        let pid_file = folder.join("server.pid");
        let (states, mut seen) = mpsc::channel(8);
        let watch = ServerWatch::new(pid_file.clone(), ServerFile::Pid("sleep")).unwrap();
        tokio::spawn(watch.follow(states));
        let up = |pid| move |state: &Server| *state == Server::Up { pid: Some(pid) };
        let down = |state: &Server| matches!(state, Server::Down { .. });
        next(&mut seen, down).await;
        for _ in 0..2 {
            let sleeper = Sleeper::new(&pid_file);
            next(&mut seen, up(i32::try_from(sleeper.0.id()).unwrap())).await;
            fs::remove_dir_all(&folder).unwrap();
            drop(sleeper);
            next(&mut seen, down).await;
            fs::create_dir(&folder).unwrap();
        }
    }

    #[tokio::test]
    async fn a_server_per_connection_is_up_as_long_as_its_marker_exists() {
        let dir = tempfile::tempdir().unwrap();
        let marker = dir.path().join("run").join("listening");
        let (states, mut seen) = mpsc::channel(8);
        tokio::spawn(ServerWatch::new(marker.clone(), ServerFile::Marker).unwrap().follow(states));
        for _ in 0..2 {
            next(&mut seen, |state| matches!(state, Server::Down { .. })).await;
            fs::create_dir_all(dir.path().join("run")).unwrap();
            fs::write(&marker, "").unwrap();
            next(&mut seen, |state| *state == Server::Up { pid: None }).await;
            fs::remove_file(&marker).unwrap();
        }
    }

    #[tokio::test]
    async fn a_pid_that_belongs_to_another_program_by_now_is_not_the_server() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("server.pid");
        let _sleeper = Sleeper::new(&pid_file);
        let (states, mut seen) = mpsc::channel(8);
        tokio::spawn(ServerWatch::new(pid_file, ServerFile::Pid("nbdkit")).unwrap().follow(states));
        next(&mut seen, |state| matches!(state, Server::Down { why } if why.contains("not nbdkit"))).await;
    }

    /// Whatever other users put in the place of the pid file is not waited for, not followed, and not read beyond the
    /// size limit.
    #[test]
    fn only_a_small_regular_file_of_the_folders_owner_counts_as_pid_file() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("server.pid");
        let kind = ServerFile::Pid("sleep");
        let sleeper = Sleeper::new(&pid_file);
        let found = |text: &str| {
            let found = find(&pid_file, kind);
            assert!(found.as_ref().is_err_and(|why| why.contains(text)), "{text}: {found:?}");
            fs::remove_file(&pid_file).unwrap();
        };
        assert!(find(&pid_file, kind).unwrap().is_some(), "the control");
        fs::rename(&pid_file, dir.path().join("real")).unwrap();
        symlink(dir.path().join("real"), &pid_file).unwrap();
        found("it is a link");
        fs::write(&pid_file, format!("{}{}", " ".repeat(64), sleeper.0.id())).unwrap();
        found("larger than 64 bytes");
        fs::File::create(&pid_file).unwrap().set_len(100 << 20).unwrap();
        found("larger than 64 bytes");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &pid_file, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        found("a device or a fifo");
        fs::write(&pid_file, b"-1").unwrap();
        found("no process id");
        fs::write(&pid_file, b"\xff\xfe").unwrap();
        found("holds no process id");
        fs::write(&pid_file, sleeper.0.id().to_string()).unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&pid_file, Some(61803), None).unwrap();
            found("who has only put it there");
        }
    }
}
