//! The lab: one private world and its contents.

use crate::attachd::{Attachd, AttachdOptions, CONFIG, SOCKET, Start};
use crate::cloud::LabCloud;
use crate::disk::{Disk, DiskOptions, Shelf};
use crate::helper::{self, Helper};
use crate::nbdkit::Nbdkit;
use crate::restart::Lives;
use crate::udevd::{Udevd, udevadm};
use crate::{BareListener, Forger, Heard, HeldSocket, NotifySocket, Volume, people, rules, slot::Slot, world};
use anyhow::{Context, Result, ensure};
use rustix::mount::mount_bind;
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The time limit for a udev event on a loaded machine.
const EVENT: Duration = Duration::from_secs(20);

/// The lab. Fields are dropped in order: programs first, then what they use.
#[derive(Debug)]
pub struct Lab {
    helper: OnceLock<Option<Helper>>,
    nbdkit: Nbdkit,
    udevd: Udevd,
    shelf: Arc<Shelf>,
    slot: Arc<Slot>,
    lives: Arc<Lives>,
}

/// Options for a lab.
#[derive(Debug, Clone)]
pub struct LabBuilder {
    udevd: bool,
    lab_claim_rules: bool,
    rules: Vec<(String, String)>,
}

impl LabBuilder {
    /// Do not start udevd (start it later with `lab.udevd().start()`).
    #[must_use]
    pub fn without_udevd(mut self) -> LabBuilder {
        self.udevd = false;
        self
    }

    /// Leave out the lab's own claim rules (files 59 and 61), to test the shipped ones with [`LabBuilder::rules`].
    #[must_use]
    pub fn without_claim_rules(mut self) -> LabBuilder {
        self.lab_claim_rules = false;
        self
    }

    /// Adds a rules file (`name` such as `59-attachd.rules`).
    #[must_use]
    pub fn rules(mut self, name: &str, text: &str) -> LabBuilder {
        self.rules.push((name.to_owned(), text.to_owned()));
        self
    }

    /// Builds the lab for the calling thread.
    pub fn build(self) -> Result<Lab> {
        let slot = Arc::new(Slot::take()?);
        slot.sweep_abandoned();
        world::enter(slot.dir())?;
        fs::create_dir_all("/run/udev/rules.d")?;
        write_rules("50-lab-identity.rules", &rules::identity(&Shelf::dir(&slot)))?;
        if self.lab_claim_rules {
            write_rules("59-lab-claims.rules", &rules::claims())?;
            write_rules("61-lab-claims.rules", &rules::nowatch())?;
        }
        for (name, text) in &self.rules {
            write_rules(name, text)?;
        }
        let mut udevd = Udevd::new(slot.dir().join("udevd.log"));
        if self.udevd {
            udevd.start()?;
        }
        let nbdkit = Nbdkit::new(slot.dir().join("nbdkit.log"));
        let (shelf, lives) = (Arc::new(Shelf::new(Arc::clone(&slot))), Arc::default());
        Ok(Lab { helper: OnceLock::new(), nbdkit, udevd, shelf, slot, lives })
    }
}

fn write_rules(name: &str, text: &str) -> Result<()> {
    fs::write(Path::new("/run/udev/rules.d").join(name), text).with_context(|| format!("writing {name}"))
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.lives.end();
        // This also removes what killed tests of this run have left, after the last test too.
        self.slot.sweep_abandoned();
    }
}

impl Lab {
    /// Makes a lab for the calling thread, with udevd running.
    ///
    /// # Panics
    /// If the lab cannot be built; the message says what to do.
    #[expect(clippy::new_without_default, reason = "it moves the thread into namespaces: nothing to happen by default")]
    pub fn new() -> Lab {
        Lab::builder().build().unwrap_or_else(|e| panic!("cannot build the lab: {e:#}"))
    }

    /// Returns the options for another lab.
    pub fn builder() -> LabBuilder {
        LabBuilder { udevd: true, lab_claim_rules: true, rules: Vec::new() }
    }

    /// Returns the lab's folder on a real disk. Every user can enter it, and it is removed with the lab.
    pub fn dir(&self) -> &Path {
        self.slot.dir()
    }

    /// Returns a new volume with a serial that no other test has.
    pub fn volume(&self) -> Volume {
        Volume::random()
    }

    /// Makes a disk with this serial; not attached yet.
    pub fn disk(&self, serial: &str, size: u64) -> Result<Disk> {
        self.disk_with(serial, size, DiskOptions::default())
    }

    /// Makes a disk with options.
    pub fn disk_with(&self, serial: &str, size: u64, options: DiskOptions) -> Result<Disk> {
        Disk::new(&self.shelf, serial, size, options)
    }

    /// A CloudStack whose host is this lab: the disks that it attaches come here. Start it before attachd, and let it live as
    /// long.
    pub fn cloud(&self, setup: stand_in::Setup) -> Result<LabCloud> {
        LabCloud::start(&self.shelf, setup)
    }

    /// A loop device on top of another device; not attached yet.
    pub fn loop_over(&self, below: &Path) -> Disk {
        Disk::over(&self.shelf, below)
    }

    /// Makes a disk and attaches it; returns when udev has finished with it.
    pub fn settled_disk(&self, serial: &str, size: u64) -> Result<Disk> {
        let mut disk = self.disk(serial, size)?;
        self.attach_settled(&mut disk)?;
        Ok(disk)
    }

    /// Attaches the disk and waits for udevd's event (link made, owner set), which is returned.
    pub fn attach_settled(&self, disk: &mut Disk) -> Result<Heard> {
        let ear = self.bare_listener()?;
        disk.attach()?;
        let (node, diskseq) = (disk.node(), disk.diskseq()?.to_string());
        let is_it = |h: &Heard| Path::new(h.get("DEVNAME")) == node && h.get("DISKSEQ") == diskseq;
        ear.wait_for(EVENT, |h| is_it(h) && h.get("ID_SERIAL") == disk.serial())
    }

    /// Detaches the disk and waits for udevd's `remove`, which is returned.
    pub fn detach_settled(&self, disk: &mut Disk) -> Result<Heard> {
        let ear = self.bare_listener()?;
        let node = disk.node();
        disk.detach()?;
        ear.wait_for(EVENT, |h| h.get("ACTION") == "remove" && Path::new(h.get("DEVNAME")) == node)
    }

    /// Does what the root helper does for one disk: an `add` trigger, and a wait until udevd has finished.
    pub fn retrigger(&self, disk: &Disk) -> Result<()> {
        ensure!(self.udevd.is_running(), "udevd does not run: a trigger would wait for ever");
        udevadm(&["trigger", "--action=add", "--settle", &disk.sysfs().to_string_lossy()])
    }

    /// Marks a serial as claimed, as attachd would. Takes effect with the next event of the disk.
    pub fn claim(&self, serial: &str) -> Result<()> {
        let path = claim_path(serial);
        fs::write(&path, "")?;
        let owner = Some(people::ATTACHD.id);
        chown(&path, owner, owner).with_context(|| format!("chown {}", path.display()))
    }

    /// Removes the claim. The node gets its old group back with [`Lab::retrigger`].
    pub fn unclaim(&self, serial: &str) -> Result<()> {
        fs::remove_file(claim_path(serial)).with_context(|| format!("{serial} is not claimed"))
    }

    /// Marks a serial as a host disk.
    pub fn host_disk(&self, serial: &str) -> Result<()> {
        Ok(fs::write(Path::new("/etc/attachd/host-disks").join(serial), "")?)
    }

    /// The box's udevd.
    pub fn udevd(&mut self) -> &mut Udevd {
        &mut self.udevd
    }

    /// Adds or replaces a rules file and makes udevd read it.
    pub fn add_rules(&self, name: &str, text: &str) -> Result<()> {
        write_rules(name, text)?;
        if self.udevd.is_running() { self.udevd.reload() } else { Ok(()) }
    }

    /// Starts nbdkit over `/run/attachd/exports`; returns when it listens.
    pub fn nbdkit_start(&mut self) -> Result<()> {
        self.nbdkit.start(&[])
    }

    /// As [`Lab::nbdkit_start`], with more options (filters, `-r`, …).
    pub fn nbdkit_start_with(&mut self, extra: &[&str]) -> Result<()> {
        self.nbdkit.start(extra)
    }

    /// Sends SIGKILL to nbdkit; its pid file stays.
    pub fn nbdkit_kill(&mut self) -> Result<()> {
        self.nbdkit.kill()
    }

    /// nbdkit's process id.
    pub fn nbdkit_pid(&self) -> Option<u32> {
        self.nbdkit.pid()
    }

    /// Publishes a link in the exports folder directly, for tests without attachd.
    pub fn publish(&self, export: &str, target: &Path) -> Result<()> {
        Ok(std::os::unix::fs::symlink(target, Path::new("/run/attachd/exports").join(export))?)
    }

    /// Writes attachd's configuration.
    pub fn attachd_config(&self, text: &str) -> Result<()> {
        fs::write(CONFIG, text).context("writing attachd.toml")
    }

    /// Starts attachd, usually with `env!("CARGO_BIN_EXE_attachd")`. The helper beside it is started first, once,
    /// because on a host with the package its socket always exists.
    pub fn attachd_start(&self, program: &Path, options: &AttachdOptions) -> Result<Attachd> {
        self.start(program, options, None)
    }

    /// As [`Lab::attachd_start`], with socket activation: systemd passes the sockets as descriptors 3 and up.
    pub fn attachd_start_activated(
        &self,
        program: &Path,
        options: &AttachdOptions,
        socket: &HeldSocket,
    ) -> Result<Attachd> {
        self.start(program, options, Some(socket.try_clone()?))
    }

    fn start(&self, program: &Path, options: &AttachdOptions, socket: Option<HeldSocket>) -> Result<Attachd> {
        self.helper_beside(program)?;
        let program = self.reachable(program)?;
        let (stderr, lives) = (self.dir().join("attachd.log"), Arc::clone(&self.lives));
        Attachd::start(Start { program, stderr, options: options.clone(), socket, lives })
    }

    /// Turns off the proof of a restart, for a test after which another start cannot show the same world. `why` is
    /// for readers of the test.
    pub fn not_restarted(&self, why: &str) {
        self.lives.exempt(why);
    }

    /// Starts no helper with attachd, for tests of a helper that is away or of a host without one. A test that
    /// listens at [`helper::SOCKET`] itself does not need this.
    pub fn without_helper(&self) {
        self.helper.get_or_init(|| None);
    }

    fn helper_beside(&self, attachd: &Path) -> Result<()> {
        let program = attachd.with_file_name("attachd-helper");
        // A stand-in for attachd has no helper beside it.
        if self.helper.get().is_none() && fs::exists(&program)? && !fs::exists(helper::SOCKET)? {
            let helper = Helper::start(&program)?;
            self.helper.get_or_init(|| Some(helper));
        }
        Ok(())
    }

    /// Returns the API socket as attachd.socket would hold it.
    pub fn held_socket(&self) -> Result<HeldSocket> {
        HeldSocket::listen(Path::new(SOCKET))
    }

    /// Makes a stand-in for systemd's notification socket; pass its `env()` to the daemon.
    pub fn notify_socket(&self) -> Result<NotifySocket> {
        NotifySocket::new(Path::new("/run/lab/notify"))
    }

    /// Returns the program at a path that an unprivileged user can reach, because a build folder may be below a
    /// private home.
    pub fn reachable(&self, program: &Path) -> Result<PathBuf> {
        let name = program.file_name().context("a program has a name")?;
        let place = Path::new("/run/lab/bin").join(name);
        if !fs::exists(&place)? {
            fs::create_dir_all("/run/lab/bin")?;
            fs::write(&place, "")?;
            mount_bind(program, &place).with_context(|| format!("binding {} (is it built?)", program.display()))?;
        }
        Ok(place)
    }

    /// A sender of forged udev events.
    pub fn forger(&self) -> Result<Forger> {
        Forger::new()
    }

    /// Sends one forged event, and returns the sender for more.
    pub fn forge(&self, properties: &[(&str, &str)]) -> Result<Forger> {
        let forger = self.forger()?;
        forger.send(properties)?;
        Ok(forger)
    }

    /// Returns a listener for udev's events from now on.
    pub fn bare_listener(&self) -> Result<BareListener> {
        BareListener::new()
    }
}

fn claim_path(serial: &str) -> PathBuf {
    Path::new("/var/lib/attachd/claims").join(serial)
}
