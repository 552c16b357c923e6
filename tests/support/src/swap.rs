//! A disk of the lab to which the kernel swaps. Swap belongs to the whole machine, so it is always turned off again.

use crate::{Disk, loops};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A guard: the kernel swaps to this disk until it is dropped.
#[derive(Debug)]
pub struct Swap<'disk> {
    disk: &'disk Disk,
}

impl<'disk> Swap<'disk> {
    /// Makes a swap area on the attached disk and turns it on, with the lowest priority. `run` runs a program with
    /// arguments where the path is valid.
    pub fn on(disk: &'disk Disk, run: impl Fn(&str, &[&str])) -> Swap<'disk> {
        let node = disk.node();
        let node = node.to_str().expect("a node's path is plain");
        run("mkswap", &[node]);
        // From here on the swap must be turned off, even if `run` panics.
        let swap = Swap { disk };
        run("swapon", &["--priority", "0", node]);
        swap
    }

    /// Returns whether the kernel still swaps to it.
    pub fn is_on(&self) -> bool {
        is_on(self.disk.number())
    }
}

impl Drop for Swap<'_> {
    fn drop(&mut self) {
        if self.is_on()
            && let Err(e) = off(&self.disk.node())
        {
            eprintln!("lab: leaving swap on {} to the next lab's sweep: {e:#}", self.disk.node().display());
        }
    }
}

/// Turns off swap that a killed test has left on this loop number. `aside` is a path for a node of it.
pub(crate) fn sweep(number: u32, aside: &Path) -> Result<()> {
    if !is_on(number) {
        return Ok(());
    }
    let _ = fs::remove_file(aside);
    crate::world::node(aside, rustix::fs::FileType::BlockDevice, 7, loops::minor(number), 0o600)?;
    let result = off(aside);
    let _ = fs::remove_file(aside);
    result
}

fn is_on(number: u32) -> bool {
    let name = format!("loop{number}");
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    // In another mount namespace the path differs, but not its last part.
    let paths = swaps.lines().filter_map(|line| line.split_whitespace().next()).map(PathBuf::from);
    paths.into_iter().any(|path| path.file_name().is_some_and(|last| *last == *name))
}

fn off(node: &Path) -> Result<()> {
    let status = Command::new("swapoff").arg(node).status().context("running swapoff (package util-linux, mount)")?;
    ensure!(status.success(), "swapoff {} failed", node.display());
    Ok(())
}
