//! systemd in a box: a lab whose programs are started by a real systemd as process 1, with a real udevd, journald and
//! `dpkg -i` inside. The host needs the packages `systemd`, `udev`, `dpkg`, `util-linux` and `iproute2`, and a kernel
//! with cgroup v2.
//!
//! The box uses the lab's own world (network, `/dev`, `/run`, `/etc`, `/var/lib`), so the lab's disks, listeners, NBD
//! clients and API client work as with a daemon without systemd. In addition it has a pid namespace, a cgroup and an
//! overlay on `/usr`, `/var/log` and `/var/cache`. None of the host's services is started, only journald and udevd.
//! State is on tmpfs, so a sync costs nothing here.
//!
//! When the test dies, the kernel kills process 1 and every process inside.

use crate::child::{Proc, children_of};
use crate::{Disk, DiskOptions, Lab, LabBuilder, NotifySocket, Volume, people};
use anyhow::{Context, Result, bail, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The time limit for process 1 to start, and to end.
const BOOT: Duration = Duration::from_secs(60);

/// The cgroup tree, mounted for the test.
const CGROUPS: &str = "/run/lab/cgroup";

/// A lab with systemd in it.
#[derive(Debug)]
pub struct SystemdBox {
    pid1: Proc,
    cgroup: PathBuf,
    inside: u32,
    /// The lab: disks, listeners, NBD clients.
    pub lab: Lab,
}

impl SystemdBox {
    /// Starts a box for the calling thread.
    ///
    /// # Panics
    /// If it cannot be built; the message says what to do.
    #[expect(clippy::new_without_default, reason = "it moves the thread into namespaces: nothing to happen by default")]
    pub fn new() -> SystemdBox {
        SystemdBox::build(Lab::builder()).unwrap_or_else(|e| panic!("cannot build the box: {e:#}"))
    }

    /// As [`SystemdBox::new`], with this volume's disk as the root file system. (The folders below it have mounts of
    /// their own, as in every box.) The disk must outlive the box.
    ///
    /// # Panics
    /// If it cannot be built; the message says what to do.
    pub fn on_root_volume(volume: &Volume) -> (Disk, SystemdBox) {
        let built = SystemdBox::build_on(Lab::builder(), Some(volume));
        let (systemd, root) = built.unwrap_or_else(|e| panic!("cannot build the box: {e:#}"));
        (root.expect("it was asked for"), systemd)
    }

    /// Builds a box in a lab with options. udevd and the claim rules come from the box and the package.
    pub fn build(lab: LabBuilder) -> Result<SystemdBox> {
        Ok(SystemdBox::build_on(lab, None)?.0)
    }

    fn build_on(lab: LabBuilder, root: Option<&Volume>) -> Result<(SystemdBox, Option<Disk>)> {
        let lab = lab.without_udevd().without_claim_rules().build()?;
        as_before_the_package()?;
        let root = root.map(|volume| root_disk(&lab, volume)).transpose()?;
        for dir in ["/usr", "/var/log", "/var/cache"] {
            overlay(dir)?;
        }
        want_only(&[
            ("sysinit.target", &["systemd-journald.service", "systemd-udevd.service"]),
            (
                "sockets.target",
                &[
                    "systemd-journald.socket",
                    "systemd-journald-dev-log.socket",
                    "systemd-udevd-control.socket",
                    "systemd-udevd-kernel.socket",
                ],
            ),
        ])?;
        let cgroup = own_cgroup(&lab)?;
        let log = lab.dir().join("systemd.log");
        let notify = lab.notify_socket()?;
        let node = root.as_ref().map(Disk::node);
        let mut pid1 = start(&cgroup, &log, &notify, node.as_deref())?;
        let inside = match booted(&mut pid1, &notify) {
            Ok(()) => children_of(pid1.pid()).first().copied().context("process 1 has ended"),
            Err(e) => Err(e),
        };
        let inside = inside.with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        Ok((SystemdBox { pid1, cgroup, inside, lab }, root))
    }

    /// Returns a command that runs inside, as root.
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.inside));
        command.args(["--pid", "--mount", "--uts", "--ipc", "--cgroup", "--", program]).args(args);
        command.env_remove("NOTIFY_SOCKET").env("DEBIAN_FRONTEND", "noninteractive").env("SYSTEMD_PAGER", "");
        command.current_dir("/").stdin(Stdio::null());
        command
    }

    /// Runs a command inside and returns its standard output. The error contains its messages.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self.output(program, args)?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "{program} {}: {}\n{said}{}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(said)
    }

    /// Runs a command inside and returns its output, whatever its exit status.
    pub fn output(&self, program: &str, args: &[&str]) -> Result<Output> {
        self.command(program, args).output().with_context(|| format!("running {program}"))
    }

    /// Returns one property of a unit.
    pub fn property(&self, unit: &str, property: &str) -> Result<String> {
        Ok(self.run("systemctl", &["show", "--property", property, "--value", unit])?.trim().to_owned())
    }

    /// Returns the main process of a service, by its pid outside the box.
    pub fn main_pid(&self, unit: &str) -> Result<u32> {
        let inner = self.property(unit, "MainPID")?;
        ensure!(inner != "0", "{unit} has no process: {}", self.status(unit));
        for pid in pids_of(&self.cgroup)? {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
            if numbers.split_whitespace().last() == Some(&inner) {
                return Ok(pid);
            }
        }
        bail!("{unit}'s process {inner} is not in the box's cgroup")
    }

    /// Returns `systemctl status` of a unit, for messages.
    pub fn status(&self, unit: &str) -> String {
        self.output("systemctl", &["status", "--full", "--lines=40", unit])
            .map(|out| String::from_utf8_lossy(&out.stdout).into_owned())
            .unwrap_or_default()
    }

    /// Returns the output of `journalctl` with these arguments, after everything earlier was written.
    pub fn journalctl(&self, args: &[&str]) -> Result<String> {
        // journald first writes everything that is waiting.
        self.run("journalctl", &["--sync"])?;
        self.run("journalctl", &[&["--no-pager"], args].concat())
    }

    /// Returns the journal, with the messages of process 1.
    pub fn journal(&self) -> String {
        self.run("journalctl", &["--no-pager", "--output=short-monotonic"]).unwrap_or_default()
    }

    /// Writes a drop-in for a unit.
    pub fn drop_in(&self, unit: &str, text: &str) -> Result<()> {
        let dir = PathBuf::from(format!("/etc/systemd/system/{unit}.d"));
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("lab.conf"), text)?;
        self.run("systemctl", &["daemon-reload"]).map(drop)
    }
}

impl Drop for SystemdBox {
    fn drop(&mut self) {
        let _ = self.pid1.kill();
        if let Err(e) = remove_cgroup(&self.cgroup) {
            eprintln!("lab: leaving {} to the next lab's sweep: {e:#}", self.cgroup.display());
        }
    }
}

/// Returns the package's rules for loop devices. Only the kernel's name and the source of the serial are replaced, so
/// the rest is tested as shipped.
///
/// # Panics
/// If the shipped rules no longer have these lines.
pub fn rules_for_loops(shipped: &str) -> String {
    let mut changed = 0;
    let mut text = String::new();
    for line in shipped.lines() {
        let line = if line.starts_with(r#"KERNEL!="vd*|sd*", GOTO="#) {
            changed += 1;
            line.replace("vd*|sd*", "loop*")
        } else if let Some((_, pattern)) = line.split_once(r#"KERNELS=="vd*", SUBSYSTEMS=="block", ATTRS{serial}=="#) {
            changed += 1;
            format!(r"ENV{{ID_SERIAL}}=={}", pattern.replace("$attr{serial}", "$env{ID_SERIAL}"))
        } else {
            line.to_owned()
        };
        text.push_str(&line);
        text.push('\n');
    }
    assert_eq!(changed, 2, "the shipped rules have changed: this exchange must follow them");
    text
}

/// Removes what the lab made in place of the package: users and folders.
fn as_before_the_package() -> Result<()> {
    unmount("/var/lib/attachd", UnmountFlags::DETACH).context("unmounting the lab's /var/lib/attachd")?;
    for dir in ["/var/lib/attachd", "/etc/attachd", "/run/attachd", "/run/attachd-nbdkit", "/run/attachd-nbd-server"] {
        fs::remove_dir_all(dir).with_context(|| format!("removing {dir}"))?;
    }
    for file in ["/etc/passwd", "/etc/group"] {
        let kept = |line: &&str| {
            let name = line.split(':').next();
            name != Some(people::ATTACHD.name) && name != Some(people::NBD.name)
        };
        let text: String = fs::read_to_string(file)?.lines().filter(kept).flat_map(|line| [line, "\n"]).collect();
        fs::write(file, text)?;
    }
    Ok(())
}

fn overlay(at: &str) -> Result<()> {
    let name = at.trim_matches('/').replace('/', "-");
    let (upper, work) = (format!("/run/lab/{name}.upper"), format!("/run/lab/{name}.work"));
    fs::create_dir_all(&upper)?;
    fs::create_dir_all(&work)?;
    let options = std::ffi::CString::new(format!("lowerdir={at},upperdir={upper},workdir={work}"))?;
    mount("overlay", at, "overlay", MountFlags::empty(), options.as_c_str()).with_context(|| format!("overlay on {at}"))
}

/// Of all units that the host's targets want, keeps only these: no unit that sets the clock, triggers devices or
/// mounts.
fn want_only(wanted: &[(&str, &[&str])]) -> Result<()> {
    const UNITS: &str = "/usr/lib/systemd/system";
    for dir in [UNITS, "/etc/systemd/system"] {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|kind| kind == "wants" || kind == "requires") {
                fs::remove_dir_all(path)?;
            }
        }
    }
    for generator in fs::read_dir("/usr/lib/systemd/system-generators")? {
        fs::remove_file(generator?.path())?;
    }
    // The host's file may name its disk and its swap area.
    let _ = fs::remove_file("/etc/fstab");
    for (target, units) in wanted {
        let dir = Path::new(UNITS).join(format!("{target}.wants"));
        fs::create_dir_all(&dir)?;
        for unit in *units {
            std::os::unix::fs::symlink(format!("../{unit}"), dir.join(unit))?;
        }
    }
    // A container image may forbid packages to start services.
    let _ = fs::remove_file("/usr/sbin/policy-rc.d");
    // A separate machine id keeps its journal apart from the host's.
    Ok(fs::write("/etc/machine-id", "0123456789abcdef0123456789abcdef\n")?)
}

/// Makes the box's own cgroup, after removing what a killed test has left there.
fn own_cgroup(lab: &Lab) -> Result<PathBuf> {
    fs::create_dir_all(CGROUPS)?;
    mount("cgroup2", CGROUPS, "cgroup2", MountFlags::empty(), None).context("mounting cgroup2 (kernel support?)")?;
    let slot = lab.dir().file_name().context("a lab has a folder")?;
    let cgroup = Path::new(CGROUPS).join(format!("attachd-lab-{}", slot.to_string_lossy()));
    remove_cgroup(&cgroup)?;
    fs::create_dir(&cgroup).with_context(|| format!("creating {}", cgroup.display()))?;
    Ok(cgroup)
}

/// Makes a disk with a file system that has the folders of a root file system.
fn root_disk(lab: &Lab, volume: &Volume) -> Result<Disk> {
    let options = DiskOptions { blank: true, ..DiskOptions::default() };
    let mut disk = lab.disk_with(&volume.serial, 16 << 20, options)?;
    disk.attach()?;
    let status = Command::new("mkfs.ext4").arg("-q").arg(disk.node()).status().context("running mkfs.ext4")?;
    ensure!(status.success(), "mkfs.ext4 failed");
    Ok(disk)
}

/// Moves the calling shell's mount namespace to the root file system on the device `$ROOT`, and mounts the folders of
/// the old root on it.
const ONTO_ROOT: &str = r#"
    mkdir -p /run/lab/root && mount -t ext4 "$ROOT" /run/lab/root && cd /run/lab/root || exit
    for there in /*; do
        if [ -L "$there" ]; then cp -a "$there" . || exit
        elif [ -d "$there" ]; then mkdir -p ".$there" && mount --rbind "$there" ".$there" || exit
        fi
    done
    umount -l run/lab/root && mkdir -p old && pivot_root . old && cd / && umount -l old && rmdir old || exit
"#;

fn start(cgroup: &Path, log: &Path, notify: &NotifySocket, root: Option<&Path>) -> Result<Proc> {
    let out = fs::File::create(log)?;
    // The cgroup is entered before its namespace is made, so that it is the root that systemd sees.
    let into_cgroup = r#"echo $$ > "$0/cgroup.procs" && exec "$@""#;
    // As on a host, later mounts reach the services. Their private /tmp folders are not made on the host's disk.
    let in_own_world = r#"mount --make-rshared / && mount -t cgroup2 cgroup2 /sys/fs/cgroup &&
        mount -t tmpfs tmpfs /tmp && mount -t tmpfs tmpfs /var/tmp && exec "$@""#;
    let in_own_world = root.map_or_else(String::new, |_| ONTO_ROOT.to_owned()) + in_own_world;
    let mut command = Command::new("sh");
    command.args(["-c", into_cgroup]).arg(cgroup);
    command.args(["unshare", "--pid", "--fork", "--kill-child=KILL", "--mount", "--mount-proc", "--uts", "--ipc"]);
    command.args(["--cgroup", "--propagation", "private", "sh", "-c", &in_own_world, "sh"]);
    command.args(["/lib/systemd/systemd", "--system", "--unit=multi-user.target"]);
    command.args(["--log-target=journal", "--show-status=no"]);
    // The environment is clean, because systemd passes it on to every service.
    command.env_clear().envs([notify.env()]).envs(root.map(|root| ("ROOT", root)));
    command.envs([("container", "lab"), ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")]);
    command.current_dir("/").stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    Proc::spawn("systemd", &mut command)
}

/// Waits until systemd reports to its container manager that it is up.
fn booted(pid1: &mut Proc, notify: &NotifySocket) -> Result<()> {
    let deadline = Instant::now() + BOOT;
    loop {
        // Once a second, check that it still runs.
        if let Some(message) = notify.next(Duration::from_secs(1))?
            && message.lines().any(|line| line == "READY=1")
        {
            return Ok(());
        }
        if let Some(status) = pid1.try_wait()? {
            bail!("systemd has ended ({status})");
        }
        ensure!(Instant::now() < deadline, "systemd is not up after {BOOT:?}");
    }
}

fn pids_of(cgroup: &Path) -> Result<Vec<u32>> {
    let mut pids = Vec::new();
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pids.extend(pids_of(&entry.path())?);
        }
    }
    Ok(pids)
}

/// Kills the processes in a cgroup and removes it with all cgroups below.
fn remove_cgroup(cgroup: &Path) -> Result<()> {
    match fs::write(cgroup.join("cgroup.kill"), "1") {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        result => result.context("killing a cgroup")?,
    }
    let events = fs::File::open(cgroup.join("cgroup.events"))?;
    let deadline = Instant::now() + BOOT;
    while fs::read_to_string(format!("/proc/self/fd/{}", events.as_raw_fd()))?.contains("populated 1") {
        ensure!(Instant::now() < deadline, "processes in {} do not end", cgroup.display());
        // The kernel reports a change of this file as an exceptional condition.
        let mut set = [rustix::event::PollFd::new(&events, rustix::event::PollFlags::PRI)];
        rustix::event::poll(&mut set, Some(&rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 }))?;
    }
    remove_below(cgroup)
}

fn remove_below(cgroup: &Path) -> Result<()> {
    for entry in fs::read_dir(cgroup)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_below(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup).with_context(|| format!("removing {}", cgroup.display()))
}
