//! The package of the programs under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Where the helper would be; it is a program of this package like the others.
const HELPER: Option<&str> = option_env!("CARGO_BIN_EXE_attachd-helper");

/// The package, built once for all tests of a run from the programs cargo has built for them.
pub(crate) fn deb() -> &'static Path {
    static DEB: OnceLock<PathBuf> = OnceLock::new();
    DEB.get_or_init(|| build("1"))
}

/// The same contents under another revision, to upgrade to.
pub(crate) fn build(revision: &str) -> PathBuf {
    let staging = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("package-{revision}"));
    let programs = staging.join("release");
    std::fs::create_dir_all(&programs).unwrap();
    let beside = || Path::new(env!("CARGO_BIN_EXE_attachd")).with_file_name("attachd-helper");
    let helper = HELPER.map_or_else(beside, PathBuf::from);
    for program in [env!("CARGO_BIN_EXE_attachd").as_ref(), env!("CARGO_BIN_EXE_attachctl").as_ref(), helper.as_path()]
    {
        let place = programs.join(program.file_name().unwrap());
        let _ = std::fs::remove_file(&place);
        std::fs::copy(program, &place).unwrap();
        // A debug build is ten times the size, and most of that is nothing dpkg need unpack in each test.
        let _ = Command::new("strip").arg("--strip-debug").arg(&place).status();
    }
    let deb = staging.join("attachd.deb");
    let built = Command::new(env!("CARGO"))
        .args(["deb", "--no-build", "--no-strip", "--fast", "--quiet", "--deb-revision", revision, "--output"])
        .arg(&deb)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("CARGO_TARGET_DIR", &staging)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "cargo deb (missing? cargo install cargo-deb --locked): {said}");
    deb
}
