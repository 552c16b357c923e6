//! A separate file system that can be frozen, so that its writers hang.
//!
//! A process that writes to a frozen file system hangs and cannot be killed, and so do the file system's loop device
//! and the lab's slot. So a guardian process that outlives the test thaws it, however the test ends.

use crate::{Disk, Lab};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// An ext4 file system on a disk of the lab, owned by attachd.
#[derive(Debug)]
pub struct Freezable {
    disk: Disk,
}

/// A guard: the file system is frozen until this is dropped or the test's process has ended.
#[derive(Debug)]
pub struct Frozen {
    guardian: Child,
}

/// The guardian's script: it reports that it runs, waits for the end of its input, which only the test holds open,
/// and thaws the file system. It ignores signals for the test's terminal.
const GUARDIAN: &str = "trap '' HUP INT TERM; echo; cat >/dev/null; exec fsfreeze --unfreeze \"$0\"";

impl Freezable {
    /// The mount point.
    pub const PLACE: &'static str = "/run/own";

    /// Makes and mounts the file system.
    pub fn mount(lab: &Lab) -> Result<Freezable> {
        let disk = lab.settled_disk(&lab.volume().serial, 64 << 20)?;
        let node = disk.node();
        let node = node.to_str().context("a node's path is plain")?;
        run("mkfs.ext4", &["-q", "-F", node])?;
        fs::create_dir(Self::PLACE)?;
        run("mount", &[node, Self::PLACE])?;
        run("chown", &["attachd", Self::PLACE])?;
        Ok(Freezable { disk })
    }

    /// Returns the disk below it.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Freezes it.
    pub fn freeze(&self) -> Result<Frozen> {
        let mut command = Command::new("sh");
        command.args(["-c", GUARDIAN, Self::PLACE]).stdin(Stdio::piped()).stdout(Stdio::piped());
        // It has its own process group, so that a kill of the test's group does not reach it.
        let mut guardian = command.process_group(0).spawn().context("starting the guardian")?;
        let mut there = guardian.stdout.take().context("its output is a pipe")?;
        there.read_exact(&mut [0]).context("the guardian has not begun")?;
        let frozen = Frozen { guardian };
        run("fsfreeze", &["--freeze", Self::PLACE])?;
        Ok(frozen)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.guardian.stdin.take());
        match self.guardian.wait() {
            Ok(status) if status.success() => {}
            result => eprintln!("lab: {} was not thawed: {result:?}", Freezable::PLACE),
        }
    }
}

impl Drop for Freezable {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--lazy", Self::PLACE]).status();
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program).args(arguments).status().with_context(|| format!("running {program}"))?;
    ensure!(status.success(), "{program} {arguments:?}: {status}");
    Ok(())
}
