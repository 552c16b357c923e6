//! Lowers the kernel's receive buffer limit for a while.
//!
//! `rmem_max` exists once per kernel (a new network namespace shows the same file, read-only). So only one test at a
//! time may set it, and it must be restored even if that test is killed. A small shell outside the lab's network
//! namespace does both: it holds a lock, sets the value, and restores the old one when its input ends.

use crate::world;
use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

const LOCK: &str = "/var/tmp/attachd-lab.rmem.lock";
const SCRIPT: &str = r#"f=/proc/sys/net/core/rmem_max
old=$(cat $f) && trap '' INT TERM HUP && echo "$1" >$f && echo set && cat >/dev/null; echo "$old" >$f"#;

/// A guard: while it exists, `/proc/sys/net/core/rmem_max` has the value asked for.
#[derive(Debug)]
pub struct RmemMax(Child);

impl RmemMax {
    /// Sets the value, after waiting for other tests that use it. The shell is not killed with the test, because it
    /// must outlive it until the value is restored.
    pub fn set(bytes: u32) -> Result<RmemMax> {
        let mut command = Command::new("flock");
        command.args([LOCK, "sh", "-c", SCRIPT, "sh", &bytes.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        if let Some(outside) = world::outside() {
            let join = || move_into_link_name_space(outside.as_fd(), Some(LinkNameSpaceType::Network));
            // SAFETY: one system call, on a descriptor that is never closed, between fork and exec.
            unsafe { command.pre_exec(move || Ok(join()?)) };
        }
        let mut keeper = command.spawn().context("running flock (package util-linux)")?;
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().expect("piped")).read_line(&mut line)?;
        let guard = RmemMax(keeper);
        ensure!(line == "set\n", "could not set rmem_max to {bytes}: is /proc/sys writable?");
        Ok(guard)
    }
}

impl Drop for RmemMax {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
