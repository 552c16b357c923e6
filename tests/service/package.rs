//! The package of the programs under test.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

/// The programs under test.
const PROGRAMS: [&str; 3] =
    [env!("CARGO_BIN_EXE_attachd"), env!("CARGO_BIN_EXE_attachctl"), env!("CARGO_BIN_EXE_attachd-helper")];

/// Everything else that goes into the package.
const SOURCES: [&str; 9] =
    ["Cargo.toml", "Cargo.lock", "README.md", "CHANGELOG.md", "LICENSE", "systemd", "udev-rules", "packaging", "docs"];

/// Builds the package once from the programs that cargo has built for the tests.
pub(crate) fn deb() -> PathBuf {
    build("1")
}

/// Builds the same contents with another revision, to upgrade to.
///
/// Tests in other processes need it too: one builds, the others wait and find it done.
pub(crate) fn build(revision: &str) -> PathBuf {
    let staging = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("package-{revision}"));
    let programs = staging.join("release");
    fs::create_dir_all(&programs).unwrap();
    let lock = File::create(staging.join("lock")).unwrap();
    lock.lock().unwrap();
    let deb = staging.join("attachd.deb");
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let made_of = PROGRAMS.iter().map(PathBuf::from).chain(SOURCES.iter().map(|source| home.join(source)));
    let newest = made_of.map(|path| last_change(&path)).max().unwrap();
    if fs::metadata(&deb).and_then(|there| there.modified()).is_ok_and(|built| built > newest) {
        return deb;
    }
    for program in PROGRAMS.map(Path::new) {
        let place = programs.join(program.file_name().unwrap());
        let _ = fs::remove_file(&place);
        fs::copy(program, &place).unwrap();
        // A debug build is ten times as large, and dpkg need not unpack that in each test.
        let _ = Command::new("strip").arg("--strip-debug").arg(&place).status();
    }
    let half_way = staging.join("half-way.deb");
    let built = Command::new(env!("CARGO"))
        .args(["deb", "--no-build", "--no-strip", "--fast", "--quiet", "--deb-revision", revision, "--output"])
        .arg(&half_way)
        .current_dir(home)
        .env("CARGO_TARGET_DIR", &staging)
        // The same contents make the same file, because the guest's image is kept as long as its sources are the
        // same.
        .env("SOURCE_DATE_EPOCH", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "cargo deb (missing? cargo install cargo-deb --locked): {said}");
    fs::rename(half_way, &deb).unwrap();
    deb
}

/// Returns when this file, or any file below this folder, was last changed.
fn last_change(path: &Path) -> SystemTime {
    let Ok(about) = fs::metadata(path) else { return SystemTime::UNIX_EPOCH };
    let below = about.is_dir().then(|| fs::read_dir(path).unwrap()).into_iter().flatten();
    let below = below.map(|entry| last_change(&entry.unwrap().path()));
    below.chain([about.modified().unwrap()]).max().unwrap()
}
