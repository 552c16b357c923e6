//! Temporary faults: each begins when it is made and ends when it is dropped.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
use std::time::Duration;

use lab::child::{Held, Proc};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};

use crate::ledger::Ledger;
use crate::scene::{STORE, Scene, run};

/// A user of the API who connects and sends nothing: user id, and number of connections.
const STRANGERS: (u32, usize) = (61_900, 150);

/// The kinds of faults; some can be left out by name: `ATTACHD_SOAK_WITHOUT=full,odd`.
const KINDS: [&str; 10] =
    ["helper", "udevd", "nbdkit", "locked", "full", "descriptors", "threads", "unreadable", "odd", "crowd"];

/// A fault that is active.
pub(crate) enum Fault {
    /// The helper, udevd or the NBD server does not answer.
    Silent(&'static str, Vec<Held>, Option<Ledger>),
    /// Another program has a write transaction in the store.
    Locked(
        #[allow(dead_code, reason = "ends when its input does")] ChildStdin,
        #[allow(dead_code, reason = "and is killed")] Proc,
    ),
    /// The store's file system is full.
    Full,
    /// The daemon has no more descriptors or threads.
    Short(&'static str, Pid, Resource, Rlimit),
    /// A file that the daemon reads is unreadable or has unexpected content.
    Covered(PathBuf),
    /// Connections that send nothing.
    Crowd(#[allow(dead_code, reason = "they hang up with it")] Vec<UnixStream>),
}

impl Fault {
    /// Returns whether the daemon could not be started during this fault.
    pub(crate) fn hinders_a_start(&self) -> bool {
        matches!(self, Self::Locked(..) | Self::Full | Self::Covered(_))
    }

    /// Returns whether the fault is of this kind.
    fn is(&self, kind: &str) -> bool {
        match self {
            Self::Silent(what, ..) | Self::Short(what, ..) => *what == kind,
            Self::Locked(..) => kind == "locked",
            Self::Full => kind == "full",
            Self::Covered(_) => matches!(kind, "unreadable" | "odd"),
            Self::Crowd(_) => kind == "crowd",
        }
    }

    pub(crate) fn name(&self) -> String {
        match self {
            Self::Silent(who, ..) => format!("{who} is silent"),
            Self::Locked(..) => "the store is locked".into(),
            Self::Full => "the store is full".into(),
            Self::Short(what, ..) => format!("no more {what}"),
            Self::Covered(path) => format!("{} is covered", path.display()),
            Self::Crowd(crowd) => format!("{} idle connections", crowd.len()),
        }
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        match self {
            Self::Silent(_, stopped, server) => {
                for process in stopped {
                    process.signal(Signal::CONT);
                }
                if let Some(ledger) = server {
                    ledger.server.end();
                }
            }
            Self::Full => drop(fs::remove_file(ballast())),
            Self::Short(_, daemon, resource, before) => drop(prlimit(Some(*daemon), *resource, *before)),
            Self::Covered(path) => run("umount", &["--lazy", path.to_str().unwrap()]),
            Self::Locked(..) | Self::Crowd(_) => {}
        }
    }
}

impl Scene {
    /// Starts a fault. `None` if its target is not there.
    pub(crate) fn fault(&mut self, random: &mut fastrand::Rng) -> Option<Fault> {
        let left_out = std::env::var("ATTACHD_SOAK_WITHOUT").unwrap_or_default();
        let kinds = KINDS.into_iter().filter(|kind| !left_out.split(',').any(|left_out| left_out == *kind));
        // No fault is active twice: the end of the first would end both.
        let off = kinds.filter(|kind| self.faults.iter().all(|(_, fault)| !fault.is(kind)));
        Some(match random.choice(off.collect::<Vec<_>>())? {
            "helper" => self.silent("helper", self.helper.pid()),
            "udevd" => {
                let pid = self.lab.udevd().pid()?;
                self.silent("udevd", pid)
            }
            "nbdkit" => self.silent("nbdkit", self.lab.nbdkit_pid()?),
            "locked" => lock(),
            "full" => fill(),
            "descriptors" => self.short("descriptors", Resource::Nofile, random)?,
            "threads" => self.short("threads", Resource::Nproc, random)?,
            "unreadable" => self.unreadable(random)?,
            "odd" => odd(random),
            _ => Fault::Crowd(self.crowd()),
        })
    }

    fn silent(&self, who: &'static str, pid: u32) -> Fault {
        let mut pids = vec![pid];
        pids.extend(lab::child::children_of(pid));
        let stopped: Vec<Held> = pids.into_iter().filter_map(Held::open).collect();
        let server = (who == "nbdkit").then(|| self.ledger.clone());
        if let Some(ledger) = &server {
            ledger.server.begin();
        }
        for process in &stopped {
            process.signal(Signal::STOP);
        }
        Fault::Silent(who, stopped, server)
    }

    /// Limits the daemon to slightly more of this resource than it has now.
    fn short(&self, what: &'static str, resource: Resource, random: &mut fastrand::Rng) -> Option<Fault> {
        let pid = self.attachd.pid().ok()?;
        let daemon = Pid::from_raw(pid.cast_signed())?;
        let folder = if resource == Resource::Nofile { "fd" } else { "task" };
        let present = u64::try_from(fs::read_dir(format!("/proc/{pid}/{folder}")).ok()?.count()).ok()?;
        // The upper limit is this process's, which the daemon has inherited.
        let limit = Rlimit { current: Some(present + random.u64(0..4)), ..getrlimit(resource) };
        Some(Fault::Short(what, daemon, resource, prlimit(Some(daemon), resource, limit).ok()?))
    }

    fn unreadable(&self, random: &mut fastrand::Rng) -> Option<Fault> {
        let attached: Vec<_> = self.held.values().filter(|held| held.disk.is_attached()).collect();
        let disk = random.choice(attached)?.disk.sysfs().canonicalize().ok()?;
        let attribute = ["diskseq", "size", "loop/backing_file"][random.usize(0..3)];
        let path = if random.u8(0..4) == 0 { PathBuf::from("/proc/swaps") } else { disk.join(attribute) };
        Some(cover(path, b"", 0o000))
    }

    fn crowd(&self) -> Vec<UnixStream> {
        let api = self.ledger.api.by(STRANGERS.0);
        (0..STRANGERS.1).map_while(|_| api.connect(Duration::from_secs(1)).ok()).collect()
    }
}

/// Makes a table with unexpected content: bytes that are not UTF-8, for a disk that does not exist.
fn odd(random: &mut fastrand::Rng) -> Fault {
    let swaps = b"Filename\tType\tSize\tUsed\tPriority\n/sw\xe4p\tfile\t1024\t0\t-2\n";
    let path = PathBuf::from("/proc/swaps");
    if random.bool() { cover(path, swaps, 0o444) } else { cover(path, &swaps[..20], 0o444) }
}

fn cover(path: PathBuf, content: &[u8], mode: u32) -> Fault {
    let cover = format!("/run/lab/cover-{:x}", fastrand::u64(..));
    File::create(&cover).and_then(|mut file| file.write_all(content)).unwrap();
    fs::set_permissions(&cover, fs::Permissions::from_mode(mode)).unwrap();
    run("mount", &["--bind", &cover, path.to_str().unwrap()]);
    fs::remove_file(&cover).unwrap();
    Fault::Covered(path)
}

fn lock() -> Fault {
    let mut command = Command::new("sqlite3");
    command.arg(format!("{STORE}/attachd.db")).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut sqlite = Proc::spawn("sqlite3", &mut command).unwrap();
    let mut input = sqlite.take_stdin().unwrap();
    input.write_all(b".timeout 5000\nBEGIN IMMEDIATE;\nSELECT 'locked';\n").unwrap();
    input.flush().unwrap();
    let mut line = String::new();
    let _ = BufReader::new(sqlite.take_stdout().unwrap()).read_line(&mut line);
    Fault::Locked(input, sqlite)
}

fn ballast() -> String {
    format!("{STORE}/ballast")
}

fn fill() -> Fault {
    let mut file = File::create(ballast()).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    Fault::Full
}
