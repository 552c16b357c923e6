//! The daemon under test, started as its unit starts it: with its own user and group, and no capabilities.

use crate::activation::HeldSocket;
use crate::api::Api;
use crate::child::{Held, Proc, children_of};
use crate::people;
use crate::restart::{self, Lives};
use crate::watch::{FolderWatch, readable};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use std::fs::{self, File};
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The path of attachd's socket.
pub const SOCKET: &str = "/run/attachd/attachd.sock";
/// The file that [`crate::Lab::attachd_config`] writes.
pub const CONFIG: &str = "/etc/attachd/attachd.toml";

/// The first descriptor that systemd passes to a service.
const FIRST_HELD: RawFd = 3;

/// How a start differs from the usual one.
#[derive(Debug, Clone)]
pub struct AttachdOptions {
    /// Everything after the program's name.
    pub args: Vec<String>,
    /// Added to the environment.
    pub env: Vec<(String, String)>,
    /// A command line in front of the program, as root: `["strace", "-f", "-o", …]`.
    pub wrapper: Vec<String>,
    /// Wait until the API answers. With false, start returns as soon as the process runs (for a start that should
    /// fail or be killed).
    pub wait_ready: bool,
    /// The time limit of that wait.
    pub limit: Duration,
}

impl Default for AttachdOptions {
    fn default() -> AttachdOptions {
        AttachdOptions {
            args: vec!["--config".into(), CONFIG.into()],
            env: Vec::new(),
            wrapper: Vec::new(),
            wait_ready: true,
            limit: Duration::from_secs(30),
        }
    }
}

/// Variables that make a daemon die or panic on purpose, or log its effects. They are left out in the restart at the
/// test's end.
const ONCE: [&str; 3] = ["ATTACHD_KILL_AT", "ATTACHD_PANIC_AT", "ATTACHD_EFFECT_LOG"];

/// How a daemon is started, so that it can be started again.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) program: PathBuf,
    /// Opened for appending, so that one file has the messages of all starts.
    pub(crate) stderr: PathBuf,
    pub(crate) options: AttachdOptions,
    pub(crate) socket: Option<HeldSocket>,
    pub(crate) lives: Arc<Lives>,
}

/// A running attachd. When it is dropped, it is stopped and started once more, and must show the same world
/// ([`crate::Lab::not_restarted`]).
#[derive(Debug)]
pub struct Attachd {
    process: Proc,
    start: Start,
    /// The number of this start in the lab.
    number: u32,
    /// Whether it has answered.
    up: bool,
    /// Whether the test has ended it or told it to end.
    ended: AtomicBool,
}

impl Attachd {
    pub(crate) fn start(start: Start) -> Result<Attachd> {
        let Start { program, stderr, options, socket: activation, lives } = &start;
        let watch = FolderWatch::new(Path::new("/run/attachd"))?;
        let log = File::options().create(true).append(true).open(stderr).context("opening attachd's log")?;
        let mut line: Vec<String> = options.wrapper.clone();
        line.extend(people::run_as(people::ATTACHD));
        if let Some(HeldSocket(held)) = activation {
            // LISTEN_PID must be the service's own pid, so the shell sets it and then becomes the service.
            let become_it = format!("LISTEN_PID=$$ LISTEN_FDS={} exec \"$@\"", held.len());
            line.extend(["sh".to_owned(), "-c".to_owned(), become_it, "sh".to_owned()]);
        }
        line.push(program.to_string_lossy().into_owned());
        line.extend(options.args.iter().cloned());
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).envs(options.env.iter().cloned()).current_dir("/");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // Out of the way of the numbers that they get in the child.
        let high = |held: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(held, FIRST_HELD + 100);
        let held =
            activation.iter().flat_map(|HeldSocket(held)| held.iter().map(high)).collect::<Result<Vec<_>, _>>()?;
        if !held.is_empty() {
            // SAFETY: between fork and exec there is only dup2, on descriptors that are open for the whole call. The
            // child's new descriptors are passed on and must not be closed when the Rust value is dropped.
            unsafe {
                command.pre_exec(move || {
                    for (number, held) in (FIRST_HELD..).zip(&held) {
                        let mut passed = ManuallyDrop::new(OwnedFd::from_raw_fd(number));
                        rustix::io::dup2(held, &mut passed)?;
                    }
                    Ok(())
                });
            }
        }
        let number = lives.begin();
        let (wait, limit) = (options.wait_ready, options.limit);
        let process = Proc::spawn("attachd", &mut command)?;
        let mut attachd = Attachd { process, start, number, up: false, ended: AtomicBool::new(false) };
        if wait {
            attachd.wait_ready(&watch, limit)?;
            attachd.up = true;
        }
        Ok(attachd)
    }

    /// Starts the same daemon once more, without the variables that made this one die or panic. No restart is proven
    /// for the old handle.
    pub(crate) fn again(&self) -> Result<Attachd> {
        let Start { program, stderr, options, socket, lives } = &self.start;
        let env = options.env.iter().filter(|(name, _)| !ONCE.contains(&name.as_str())).cloned().collect();
        let options = AttachdOptions { args: options.args.clone(), env, ..Default::default() };
        let socket = socket.as_ref().map(HeldSocket::try_clone).transpose()?;
        let start =
            Start { program: program.clone(), stderr: stderr.clone(), options, socket, lives: Arc::clone(lives) };
        let mut again = Attachd::start(start)?;
        again.number = 0;
        Ok(again)
    }

    /// Stops the daemon, runs `meanwhile`, starts it once more, and returns an error that describes any difference in
    /// what it shows. Dropping the handle does the same without `meanwhile`, and panics with the error.
    pub fn shows_the_same_after_a_restart(mut self, meanwhile: impl FnOnce(), limit: Duration) -> Result<()> {
        let result = restart::proven(&mut self, meanwhile, limit);
        self.number = 0;
        result
    }

    pub(crate) fn lives(&self) -> &Arc<Lives> {
        &self.start.lives
    }

    pub(crate) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.process.try_wait()?.is_some())
    }

    /// Returns whether the test has ended the daemon.
    pub(crate) fn was_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    fn wait_ready(&mut self, watch: &FolderWatch, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut last;
        loop {
            match self.api().get("/api/v1/health") {
                Ok(_) => return Ok(()),
                Err(e) => last = e,
            }
            if let Some(status) = self.process.try_wait()? {
                bail!("attachd ended before it answered ({status}); it said:\n{}", self.stderr_text());
            }
            ensure!(
                Instant::now() < deadline,
                "no answer after {limit:?} ({last:#}); it said:\n{}",
                self.stderr_text()
            );
            // The socket's file appears at bind(2) and works from listen(2) on. There is no event for that, so the
            // request is repeated.
            let _ = readable(&[watch.fd(), self.process.exited_fd()], Duration::from_millis(10))?;
            let _ = watch.take();
        }
    }

    /// Returns a client of its API.
    pub fn api(&self) -> Api {
        Api::new(SOCKET).remembering(&self.start.lives)
    }

    /// Returns the daemon's own process id, even with a wrapper (setpriv becomes attachd; attachd is a child of
    /// strace).
    pub fn pid(&self) -> Result<u32> {
        if self.start.options.wrapper.is_empty() {
            return Ok(self.process.pid());
        }
        let wanted = fs::metadata(&self.start.program)?;
        let mut queue = vec![self.process.pid()];
        while let Some(pid) = queue.pop() {
            if let Ok(exe) = fs::metadata(format!("/proc/{pid}/exe"))
                && (exe.dev(), exe.ino()) == (wanted.dev(), wanted.ino())
            {
                return Ok(pid);
            }
            queue.extend(children_of(pid));
        }
        bail!("no attachd below pid {}; it said:\n{}", self.process.pid(), self.stderr_text())
    }

    /// Sends SIGKILL and waits for the end.
    pub fn kill9(&mut self) -> Result<()> {
        self.ended.store(true, Ordering::SeqCst);
        let daemon = Held::open(self.pid()?);
        if let Some(daemon) = &daemon {
            daemon.signal(Signal::KILL);
            daemon.wait_gone(Duration::from_secs(10))?;
        }
        self.wait_exit(Duration::from_secs(10)).map(drop)
    }

    /// SIGSTOP.
    pub fn sigstop(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    pub fn sigcont(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// SIGHUP: reload the configuration.
    pub fn sighup(&self) -> Result<()> {
        self.signal(Signal::HUP)
    }

    /// Sends SIGTERM and waits for the end.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait_exit(Duration::from_secs(30))
    }

    /// Sends a signal to the daemon itself.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if matches!(signal, Signal::KILL | Signal::TERM | Signal::INT) {
            self.ended.store(true, Ordering::SeqCst);
        }
        Held::open(self.pid()?).context("attachd has ended")?.signal(signal);
        Ok(())
    }

    /// Waits for the end; with a wrapper, the status is the wrapper's.
    pub fn wait_exit(&mut self, limit: Duration) -> Result<ExitStatus> {
        let status = self.process.wait(limit).with_context(|| format!("attachd said:\n{}", self.stderr_text()))?;
        self.ended.store(true, Ordering::SeqCst);
        Ok(status)
    }

    /// Returns what it wrote to standard error, with earlier starts in this lab.
    pub fn stderr_text(&self) -> String {
        fs::read_to_string(&self.start.stderr).unwrap_or_default()
    }
}

impl Drop for Attachd {
    fn drop(&mut self) {
        // After a failed test nothing is proven.
        if std::thread::panicking() || !self.up || !self.start.lives.to_prove(self.number) {
            return;
        }
        if let Err(error) = restart::proven(self, || (), restart::REST) {
            panic!("{error:#}");
        }
    }
}
