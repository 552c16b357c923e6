//! The private world: namespaces and mounts of the calling thread.

use crate::people;
use anyhow::{Context, Result, bail};
use rustix::fs::{FileType, Mode};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::thread::UnshareFlags;
use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::sync::OnceLock;

/// A second set of loop nodes, for the lab's own use. udev watches inodes, so writes through these nodes make no
/// `change` event, as a hypervisor's writes make none.
pub(crate) const BACKSTAGE: &str = "/run/lab/nodes";

/// The network namespace of the first lab's process before it entered the lab.
static OUTSIDE: OnceLock<File> = OnceLock::new();

/// Returns the host's network namespace, or `None` while the process has not left it.
pub(crate) fn outside() -> Option<&'static File> {
    OUTSIDE.get()
}

/// Moves the calling thread into its own world, with `real_disk` (a folder) as the lab's `/var/lib/attachd`.
pub(crate) fn enter(real_disk: &Path) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the lab needs root (namespaces, mounts, loop devices): run the tests as root");
    }
    let here = File::open("/proc/thread-self/ns/net").context("opening the present network namespace")?;
    OUTSIDE.get_or_init(|| here);
    // SAFETY: descriptors stay shared (no CLONE_FILES), so no other thread can see a wrong table.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS | UnshareFlags::FS) }
        .context("unshare(network, mounts): namespaces must be allowed")?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).context("making all mounts private")?;

    tmpfs("/run", "mode=0755")?;
    fs::create_dir_all(BACKSTAGE)?;
    dev().context("setting up the box's /dev")?;
    overlay("/etc")?;
    overlay("/var/lib")?;
    people::add_to_etc()?;
    folders(real_disk)?;
    loopback_up()
}

fn tmpfs(at: &str, options: &str) -> Result<()> {
    let options = CString::new(options)?;
    mount("tmpfs", at, "tmpfs", MountFlags::empty(), options.as_c_str()).with_context(|| format!("tmpfs on {at}"))
}

/// Mounts a tmpfs with the few character devices that programs need, and no disk. So a rule that changes a node's
/// owner can only reach nodes of this lab.
fn dev() -> Result<()> {
    tmpfs("/dev", "mode=0755")?;
    for (name, major, minor, mode) in [
        ("null", 1, 3, 0o666),
        ("zero", 1, 5, 0o666),
        ("full", 1, 7, 0o666),
        ("random", 1, 8, 0o666),
        ("urandom", 1, 9, 0o666),
        ("tty", 5, 0, 0o666),
        ("loop-control", 10, 237, 0o600),
    ] {
        node(&Path::new("/dev").join(name), FileType::CharacterDevice, major, minor, mode)?;
    }
    for (name, to) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        symlink(to, Path::new("/dev").join(name))?;
    }
    fs::create_dir("/dev/shm")?;
    tmpfs("/dev/shm", "mode=1777")?;
    fs::create_dir("/dev/pts")?;
    mount("devpts", "/dev/pts", "devpts", MountFlags::empty(), c"newinstance,ptmxmode=0666").context("devpts")
}

/// Makes a device node with exactly this mode, whatever the umask.
pub(crate) fn node(path: &Path, kind: FileType, major: u32, minor: u32, mode: u32) -> Result<()> {
    let device = rustix::fs::makedev(major, minor);
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, Mode::from_raw_mode(mode), device)
        .with_context(|| format!("mknod {}", path.display()))?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}

/// Lets the lab write below `at` without changing the host: changes go to the lab's `/run`.
fn overlay(at: &str) -> Result<()> {
    let name = at.trim_matches('/').replace('/', "-");
    let (upper, work) = (format!("/run/lab/{name}.upper"), format!("/run/lab/{name}.work"));
    fs::create_dir_all(&upper)?;
    fs::create_dir_all(&work)?;
    let options = CString::new(format!("lowerdir={at},upperdir={upper},workdir={work}"))?;
    mount("overlay", at, "overlay", MountFlags::empty(), options.as_c_str())
        .with_context(|| format!("overlay on {at} (the kernel needs overlayfs; one lab per thread)"))
}

/// Makes the folders that the package would make, with their owners.
fn folders(real_disk: &Path) -> Result<()> {
    let attachd = people::ATTACHD;
    let state = real_disk.join("state");
    folder(&state, attachd, 0o755)?;
    fs::create_dir_all("/var/lib/attachd")?;
    mount_bind(&state, "/var/lib/attachd").context("binding /var/lib/attachd")?;
    folder(Path::new("/var/lib/attachd/claims"), attachd, 0o755)?;
    for dir in ["/etc/attachd", "/etc/attachd/host-disks"] {
        // The host may have these folders; the lab starts with empty ones.
        let _ = fs::remove_dir_all(dir);
        fs::create_dir_all(dir)?;
    }
    folder(Path::new("/run/attachd"), attachd, 0o755)?;
    folder(Path::new("/run/attachd/exports"), attachd, 0o755)?;
    folder(Path::new("/run/attachd/nbd-server.d"), attachd, 0o755)?;
    for dir in ["/run/attachd-nbdkit", "/run/attachd-nbd-server"] {
        folder(Path::new(dir), people::NBD, 0o755)?;
    }
    Ok(())
}

fn folder(path: &Path, owner: people::Person, mode: u32) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
    chown(path, Some(owner.id), Some(owner.id)).with_context(|| format!("chown {}", path.display()))?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}

/// Turns on `lo`, which is down in a new network namespace.
fn loopback_up() -> Result<()> {
    let status = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
    match status.context("running ip (package iproute2)")?.success() {
        true => Ok(()),
        false => bail!("`ip link set lo up` failed in the new network namespace"),
    }
}
