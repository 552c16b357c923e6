//! The guest's disk: a stock Debian with the package in it, built once for each set of sources.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::package;

const PACKAGES: &str = include_str!("image/packages");
const BASE: &str = include_str!("image/base");
const INSTALLED: &str = include_str!("image/installed");

/// The UUID and label of the root file system. A customer's volume may be a copy of it, with the same ones.
pub(crate) const ROOT_UUID: &str = "b0070000-0000-4000-8000-000000000001";
pub(crate) const ROOT_LABEL: &str = "guest-root";
/// CloudStack gives the root volume's disk a serial like any other's. These are its volume and serial.
pub(crate) const ROOT_VOLUME: &str = "a77ac4d0-a77a-c4d0-a77a-000000000000";
pub(crate) const ROOT_SERIAL: &str = "a77ac4d0a77ac4d0a77a";

/// A disk to boot from, and the files with which QEMU boots it without a boot loader.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) root: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
}

/// The guest's Debian release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Suite {
    Bookworm,
    Trixie,
}

impl Suite {
    fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    /// Returns Debian 12; with `ATTACHD_VM_SUITE=trixie` Debian 13, for cases that name no release.
    pub(crate) fn usual() -> Self {
        match std::env::var("ATTACHD_VM_SUITE").as_deref() {
            Ok("trixie") => Self::Trixie,
            Ok("bookworm") | Err(_) => Self::Bookworm,
            Ok(other) => panic!("ATTACHD_VM_SUITE={other}: bookworm or trixie"),
        }
    }
}

/// Returns the folder of images, running guests and failures.
pub(crate) fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("vm");
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Returns an image of the release, with the package of the programs under test.
pub(crate) fn image(suite: Suite) -> Image {
    static IMAGES: [OnceLock<Image>; 2] = [const { OnceLock::new() }; 2];
    IMAGES[suite as usize].get_or_init(|| image_of(suite.name())).clone()
}

fn image_of(suite: &str) -> Image {
    let lock = File::create(folder().join("lock")).unwrap();
    lock.lock().unwrap();
    // It has its own revision, so that no other test makes the file again while it is read.
    let deb = package::build("1vm");
    let packages: Vec<_> = PACKAGES.split_whitespace().collect();

    let base_of = digest(&[suite.as_bytes(), BASE.as_bytes(), PACKAGES.as_bytes()]);
    let base = built(&format!("base-{suite}"), &base_of, |place| {
        println!("making a {suite} guest of {} packages: about two minutes", packages.len());
        let mut script = Command::new(script("base"));
        script.arg(suite).arg(place.join("tree")).args(&packages);
        script
    });
    let image_of = digest(&[base_of.as_bytes(), INSTALLED.as_bytes(), &fs::read(&deb).unwrap()]);
    let image = built(&format!("image-{suite}"), &image_of, |place| {
        println!("installing the package into it: about a quarter of a minute");
        let mut script = Command::new(script("installed"));
        script.arg(base.join("tree")).arg(&deb).arg(place).args([ROOT_UUID, ROOT_LABEL, ROOT_SERIAL]);
        script
    });
    Image { root: image.join("root.img"), kernel: image.join("vmlinuz"), initrd: image.join("initrd") }
}

/// Returns the folder `<name>-<made from>`, filled by `script` if it is not there. An older one of the name is
/// removed.
fn built(name: &str, made_from: &str, script: impl FnOnce(&Path) -> Command) -> PathBuf {
    let place = folder().join(format!("{name}-{made_from}"));
    if place.exists() {
        return place;
    }
    for old in fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap()) {
        if old.file_name().to_str().is_some_and(|old| old.starts_with(name)) {
            fs::remove_dir_all(old.path()).unwrap();
        }
    }
    let unfinished = place.with_extension("unfinished");
    fs::create_dir(&unfinished).unwrap();
    run(&mut script(&unfinished));
    fs::rename(unfinished, &place).unwrap();
    place
}

/// Runs a script. A failure shows its output: apt names the package, the script the step.
fn run(script: &mut Command) {
    let told = script.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{script:?}: {e}"));
    let said = [String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr)].concat();
    let last: Vec<_> = said.lines().rev().take(25).collect();
    let last: Vec<_> = last.into_iter().rev().collect();
    assert!(
        told.status.success(),
        "the guest's image cannot be built: {} ended with {}. `tools/setup` installs what it needs; ATTACHD_VM_MIRROR=<url> \
         takes Debian's packages from another place. It said last:\n{}",
        script.get_program().to_string_lossy(),
        told.status,
        last.join("\n")
    );
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm/image").join(name)
}

/// Returns a name for contents. FNV-1a is enough, because nobody here tries to make a collision.
fn digest(parts: &[&[u8]]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in parts.iter().flat_map(|part| part.iter().chain(&[0])) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{hash:016x}")
}
