//! The package of the programs under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The programs under test.
const PROGRAMS: [&str; 3] =
    [env!("CARGO_BIN_EXE_attachd"), env!("CARGO_BIN_EXE_attachctl"), env!("CARGO_BIN_EXE_attachd-helper")];

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
    // With nextest each test is a process of its own: the first one of a run builds it, the others wait for it.
    let stamp = staging.join("run");
    let lock = std::fs::File::create(staging.join("lock")).unwrap();
    lock.lock().unwrap();
    let run = std::env::var("NEXTEST_RUN_ID").unwrap_or_else(|_| format!("process {}", std::process::id()));
    let deb = staging.join("attachd.deb");
    if std::fs::read_to_string(&stamp).is_ok_and(|last| last == run) {
        return deb;
    }
    for program in PROGRAMS.map(Path::new) {
        let place = programs.join(program.file_name().unwrap());
        let _ = std::fs::remove_file(&place);
        std::fs::copy(program, &place).unwrap();
        // A debug build is ten times the size, and most of that is nothing dpkg need unpack in each test.
        let _ = Command::new("strip").arg("--strip-debug").arg(&place).status();
    }
    let built = Command::new(env!("CARGO"))
        .args(["deb", "--no-build", "--no-strip", "--fast", "--quiet", "--deb-revision", revision, "--output"])
        .arg(&deb)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("CARGO_TARGET_DIR", &staging)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "cargo deb (missing? cargo install cargo-deb --locked): {said}");
    std::fs::write(stamp, run).unwrap();
    deb
}
