//! A child process that cannot outlive the test.

use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus};
use std::time::Duration;

/// A running child, held by a pidfd, so that a signal cannot hit a recycled pid. Killed and reaped on drop.
#[derive(Debug)]
pub struct Proc {
    name: String,
    child: Child,
    pidfd: OwnedFd,
}

impl Proc {
    /// Starts `command`, to be killed by the kernel when the calling **thread** ends, however it ends.
    pub fn spawn(name: &str, command: &mut Command) -> Result<Proc> {
        let parent = rustix::process::getpid();
        // SAFETY: only async-signal-safe system calls between fork and exec.
        unsafe {
            command.pre_exec(move || {
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
                // The parent may have died before the request was in place.
                if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(rustix::io::Errno::SRCH.into()) }
            });
        }
        let child = command.spawn().with_context(|| format!("starting {name}: is it installed? ({command:?})"))?;
        let pidfd = pidfd_open(pid_of(child.id()), PidfdFlags::empty()).context("pidfd_open")?;
        Ok(Proc { name: name.to_owned(), child, pidfd })
    }

    /// Returns the process id of the spawned process (of the wrapper, if there is one).
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Takes the piped standard output.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Takes the piped standard input.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        pidfd_send_signal(&self.pidfd, signal).with_context(|| format!("signalling {}", self.name))
    }

    /// Returns a descriptor that is readable when the process has ended.
    pub fn exited_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Returns the exit status if the process has ended.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for the end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        crate::watch::readable(&[self.pidfd.as_fd()], limit)?;
        self.try_wait()?.ok_or_else(|| anyhow!("{} (pid {}) still runs after {limit:?}", self.name, self.pid()))
    }

    /// Sends SIGKILL and reaps the process. Does nothing if it has ended already.
    pub fn kill(&mut self) -> Result<()> {
        // std refuses to signal a child that it has reaped, so this cannot hit another process.
        self.child.kill().with_context(|| format!("killing {}", self.name))?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// A pidfd of a process that is not our child (udevd's worker, strace's tracee).
#[derive(Debug)]
pub struct Held(OwnedFd);

impl Held {
    /// Opens the process, or returns `None` if it is gone.
    pub fn open(pid: u32) -> Option<Held> {
        pidfd_open(pid_of(pid), PidfdFlags::empty()).ok().map(Held)
    }

    /// Sends a signal; a process that has ended is not an error.
    pub fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.0, signal);
    }

    /// Waits for the end.
    pub fn wait_gone(&self, limit: Duration) -> Result<()> {
        match crate::watch::readable(&[self.0.as_fd()], limit)? {
            true => Ok(()),
            false => Err(anyhow!("a process that was killed still lives after {limit:?}")),
        }
    }
}

/// The direct children of a process's main thread.
pub fn children_of(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_ascii_whitespace().filter_map(|p| p.parse().ok()).collect()
}

fn pid_of(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed()).expect("a child's pid is positive")
}
