//! The daemon under test, started as its unit starts it: own user, own group, no capabilities.

use crate::activation::HeldSocket;
use crate::api::Api;
use crate::child::{Held, Proc, children_of};
use crate::people;
use crate::watch::{FolderWatch, readable};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use std::fs::{self, File};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Where attachd listens.
pub const SOCKET: &str = "/run/attachd/attachd.sock";
/// Where [`crate::Lab::attachd_config`] writes.
pub const CONFIG: &str = "/etc/attachd/attachd.toml";

/// How a start differs from the usual one.
#[derive(Debug, Clone)]
pub struct AttachdOptions {
    /// Everything after the program's name.
    pub args: Vec<String>,
    /// Added to the environment.
    pub env: Vec<(String, String)>,
    /// In front of everything, as root: `["strace", "-f", "-o", …]`.
    pub wrapper: Vec<String>,
    /// Wait until the API answers; false returns as soon as the process runs (a start that is meant to fail, or to be
    /// killed half-way).
    pub wait_ready: bool,
    /// How long to wait for that.
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

/// A running attachd. Killed on drop.
#[derive(Debug)]
pub struct Attachd {
    process: Proc,
    program: PathBuf,
    stderr: PathBuf,
    wrapped: bool,
}

impl Attachd {
    /// `stderr` is appended to, so that one file tells the story over restarts.
    pub(crate) fn start(
        program: &Path,
        stderr: PathBuf,
        options: &AttachdOptions,
        activation: Option<&HeldSocket>,
    ) -> Result<Attachd> {
        let watch = FolderWatch::new(Path::new("/run/attachd"))?;
        let log = File::options().create(true).append(true).open(&stderr).context("opening attachd's log")?;
        let mut line: Vec<String> = options.wrapper.clone();
        line.extend(people::run_as(people::ATTACHD));
        if activation.is_some() {
            // LISTEN_PID is the service's own pid: only something that becomes it can say it.
            line.extend(["sh", "-c", "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"", "sh"].map(str::to_owned));
        }
        line.push(program.to_string_lossy().into_owned());
        line.extend(options.args.iter().cloned());
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).envs(options.env.iter().cloned()).current_dir("/");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        if let Some(HeldSocket(held)) = activation {
            let held = held.as_raw_fd();
            // SAFETY: only dup2 between fork and exec, on a descriptor that is open for the whole call; descriptor 3 of
            // the child is given up on purpose, and must not be closed when the Rust value is dropped.
            unsafe {
                command.pre_exec(move || {
                    let mut third = ManuallyDrop::new(OwnedFd::from_raw_fd(3));
                    if held == 3 {
                        return Ok(rustix::io::fcntl_setfd(&*third, rustix::io::FdFlags::empty())?);
                    }
                    Ok(rustix::io::dup2(BorrowedFd::borrow_raw(held), &mut third)?)
                });
            }
        }
        let process = Proc::spawn("attachd", &mut command)?;
        let mut attachd =
            Attachd { process, program: program.to_owned(), stderr, wrapped: !options.wrapper.is_empty() };
        if options.wait_ready {
            attachd.wait_ready(&watch, options.limit)?;
        }
        Ok(attachd)
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
            // The file appears at bind(2) and works from listen(2): between the two only asking again helps.
            let _ = readable(&[watch.fd(), self.process.exited_fd()], Duration::from_millis(10))?;
            let _ = watch.take();
        }
    }

    /// Its API.
    pub fn api(&self) -> Api {
        Api::new(SOCKET)
    }

    /// The daemon's own process id, also under a wrapper (setpriv becomes attachd; strace's is its child).
    pub fn pid(&self) -> Result<u32> {
        if !self.wrapped {
            return Ok(self.process.pid());
        }
        let wanted = fs::metadata(&self.program)?;
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

    /// SIGKILL, and waits for the end.
    pub fn kill9(&mut self) -> Result<()> {
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

    /// SIGTERM, and waits for the end.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait_exit(Duration::from_secs(30))
    }

    /// Any signal, to the daemon itself.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Held::open(self.pid()?).context("attachd has ended")?.signal(signal);
        Ok(())
    }

    /// Waits for the end; the status is the wrapper's when there is one.
    pub fn wait_exit(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.process.wait(limit).with_context(|| format!("attachd said:\n{}", self.stderr_text()))
    }

    /// What it wrote, earlier starts in this lab included.
    pub fn stderr_text(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }
}
