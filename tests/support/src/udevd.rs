//! The lab's systemd-udevd.

use crate::child::{Held, Proc, children_of};
use crate::watch::{FolderWatch, readable};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = "/lib/systemd/systemd-udevd";
const CONTROL: &str = "/run/udev/control";
const START: Duration = Duration::from_secs(20);

/// Starts, stops and pauses the lab's udevd. It runs in the foreground, so that it is our child and dies with us.
#[derive(Debug)]
pub struct Udevd {
    log: PathBuf,
    running: Option<Proc>,
}

impl Udevd {
    pub(crate) fn new(log: PathBuf) -> Udevd {
        Udevd { log, running: None }
    }

    /// Starts udevd and returns when it answers. Events that happened while it was away are not replayed: only a
    /// trigger repairs that, as on a host where systemd did not hold the kernel's socket.
    pub fn start(&mut self) -> Result<()> {
        ensure!(self.running.is_none(), "udevd runs already: stop() it first");
        fs::create_dir_all("/run/udev")?;
        // A dead udevd leaves its socket file, which must not be taken for the new one's.
        let _ = fs::remove_file(CONTROL);
        let watch = FolderWatch::new(Path::new("/run/udev"))?;
        let log = File::options().create(true).append(true).open(&self.log).context("opening udevd's log")?;
        let mut command = Command::new(PROGRAM);
        command.env("SYSTEMD_LOG_TARGET", "console").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        if std::env::var_os("LAB_UDEV_DEBUG").is_some() {
            command.env("SYSTEMD_LOG_LEVEL", "debug");
        }
        let mut udevd = Proc::spawn("systemd-udevd", &mut command)?;
        let deadline = Instant::now() + START;
        while !fs::exists(CONTROL)? {
            let left = deadline.saturating_duration_since(Instant::now());
            let happened = readable(&[watch.fd(), udevd.exited_fd()], left)?;
            let _ = watch.take();
            if let Some(status) = udevd.try_wait()? {
                bail!("systemd-udevd ended at once ({status}): {}", self.log_text());
            }
            ensure!(happened, "no {CONTROL} after {START:?}; udevd said: {}", self.log_text());
        }
        // The answer to a ping shows that the rules are read. The socket exists at bind(2) and works from listen(2)
        // on; there is no event in between, so the ping is repeated.
        while let Err(e) = self.ping() {
            if udevd.try_wait()?.is_some() || Instant::now() > deadline {
                return Err(e.context(format!("udevd does not answer; it said: {}", self.log_text())));
            }
            let _ = readable(&[udevd.exited_fd()], Duration::from_millis(5))?;
        }
        self.running = Some(udevd);
        Ok(())
    }

    /// Sends SIGKILL to udevd and its workers, and waits for their end. `/run/udev/control` stays, as on a real host.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut udevd) = self.running.take() else { return Ok(()) };
        let workers = workers(&udevd);
        udevd.kill()?;
        for worker in workers {
            worker.signal(Signal::KILL);
            worker.wait_gone(Duration::from_secs(10))?;
        }
        Ok(())
    }

    /// SIGSTOP: events queue up in the kernel's socket buffer.
    pub fn pause(&self) -> Result<()> {
        self.signal_all(Signal::STOP)
    }

    /// SIGCONT.
    pub fn resume(&self) -> Result<()> {
        self.signal_all(Signal::CONT)
    }

    /// Returns whether it runs (a paused one counts).
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Its process id.
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(Proc::pid)
    }

    /// Waits until udevd's main loop has answered.
    pub fn ping(&self) -> Result<()> {
        udevadm(&["control", "--ping", "--timeout=20"])
    }

    /// Reads the rules again (after [`crate::Lab::add_rules`]).
    pub fn reload(&self) -> Result<()> {
        udevadm(&["control", "--reload", "--timeout=20"])
    }

    /// Waits until udevd's queue is empty. That says nothing about a particular disk.
    pub fn settle(&self) -> Result<()> {
        ensure!(self.is_running(), "udevd does not run: settle would return at once and mean nothing");
        udevadm(&["settle", "--timeout=30"])
    }

    /// Returns what udevd wrote (everything, with `LAB_UDEV_DEBUG=1` in the environment).
    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn signal_all(&self, signal: Signal) -> Result<()> {
        let udevd = self.running.as_ref().context("udevd does not run")?;
        udevd.signal(signal)?;
        workers(udevd).iter().for_each(|w| w.signal(signal));
        Ok(())
    }
}

impl Drop for Udevd {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

fn workers(udevd: &Proc) -> Vec<Held> {
    children_of(udevd.pid()).into_iter().filter_map(Held::open).collect()
}

/// Runs udevadm in the box.
pub(crate) fn udevadm(arguments: &[&str]) -> Result<()> {
    let output = Command::new("udevadm").args(arguments).output().context("running udevadm (package udev)")?;
    ensure!(output.status.success(), "udevadm {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
