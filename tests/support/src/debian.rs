//! Programs of one of Debian's releases, unpacked into a folder of the build: made once, by whoever needs it first.

use crate::world::outside;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder with `package` of `suite`, what it needs, a shell and the basic programs, none of it configured: a root to
/// change into. `/proc`, `/dev`, `/run` `/etc/attachd` and others are there, empty: for what is laid in.
pub fn unpacked(suite: &str, package: &str) -> Result<PathBuf> {
    let base = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/lab"));
    fs::create_dir_all(base).with_context(|| format!("creating {}", base.display()))?;
    let base = base.canonicalize()?;
    let root = base.join(format!("{package}-{suite}"));
    // One makes it, the others wait: also those of other processes.
    let lock = File::create(base.join(format!("{package}-{suite}.lock")))?;
    lock.lock().context("waiting for another test that unpacks Debian's packages")?;
    if !root.exists() {
        // Renamed when it is whole: a test that was killed half-way leaves nothing that looks like it.
        let growing = base.join(format!("{package}-{suite}.new"));
        let _ = fs::remove_dir_all(&growing);
        unpack(suite, package, &growing)?;
        fs::rename(&growing, &root)?;
    }
    Ok(root)
}

fn unpack(suite: &str, package: &str, into: &Path) -> Result<()> {
    // A lab's own network leads nowhere.
    let mut command = Command::new("nsenter");
    if let Some(outside) = outside() {
        command.arg(format!("--net=/proc/{}/fd/{}", std::process::id(), outside.as_raw_fd()));
    }
    command.args([
        "--",
        "mmdebstrap",
        "--quiet",
        "--variant=extract",
        "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
    ]);
    command.arg(format!("--include={package},dash,coreutils")).arg(suite).arg(into);
    let output = command.output().context("running nsenter (package util-linux)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "mmdebstrap (missing? apt-get install mmdebstrap) cannot fetch {package} of Debian {suite}: {said}"
    );
    for dir in ["proc", "dev", "run", "sys", "home", "root", "tmp", "var/tmp", "etc/attachd"] {
        fs::create_dir_all(into.join(dir))?;
    }
    Ok(())
}
