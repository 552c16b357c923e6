//! Programs of a Debian release, unpacked into a folder of the build. The first test that needs them unpacks them.

use crate::world::outside;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Returns a folder with `package` of `suite`, its dependencies, a shell and the basic programs, all unconfigured, to
/// be used as a root folder. Empty folders for mounts are there: `/proc`, `/dev`, `/run`, `/etc/attachd` and others.
pub fn unpacked(suite: &str, package: &str) -> Result<PathBuf> {
    let base = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/lab"));
    fs::create_dir_all(base).with_context(|| format!("creating {}", base.display()))?;
    let base = base.canonicalize()?;
    let root = base.join(format!("{package}-{suite}"));
    // One test unpacks and the others wait, even in other processes.
    let lock = File::create(base.join(format!("{package}-{suite}.lock")))?;
    lock.lock().context("waiting for another test that unpacks Debian's packages")?;
    if !root.exists() {
        // The folder is renamed when it is complete, so that a killed test leaves no incomplete one.
        let growing = base.join(format!("{package}-{suite}.new"));
        let _ = fs::remove_dir_all(&growing);
        unpack(suite, package, &growing)?;
        fs::rename(&growing, &root)?;
    }
    Ok(root)
}

fn unpack(suite: &str, package: &str, into: &Path) -> Result<()> {
    // The lab's network namespace has no connection to the outside.
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
