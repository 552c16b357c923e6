//! A host with systemd, and attachd on it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use lab::systemd_box::{SystemdBox, rules_for_loops};
use lab::{Api, Disk, Lab, Volume};
use serde_json::{Value, json};

use crate::package;

pub(crate) const MIB: u64 = 1 << 20;

/// Longer than anything takes that works.
const SOON: Duration = Duration::from_secs(20);

pub(crate) struct Host {
    pub(crate) inside: SystemdBox,
    pub(crate) api: Api,
}

impl Host {
    /// A host without attachd. What a host with loop devices in place of virtio disks needs to be told is there already:
    /// the rules for them, the scheme, the class of devices.
    pub(crate) fn empty() -> Self {
        let inside = SystemdBox::new();
        let shipped = include_str!("../../udev-rules/59-attachd.rules");
        // A file of the same name in /run goes before the package's.
        fs::write("/run/udev/rules.d/59-attachd.rules", rules_for_loops(shipped)).unwrap();
        fs::create_dir("/etc/attachd").unwrap();
        fs::write("/etc/attachd/lab.toml", "[device]\nschemes = [\"loop\"]\n").unwrap();
        let daemon = "[Service]\nExecStart=\nExecStart=/usr/sbin/attachd --config /etc/attachd/lab.toml\n";
        let interim = if notifies() { "" } else { "Type=exec\nWatchdogSec=0\n" };
        inside.drop_in("attachd.service", &format!("{daemon}{interim}")).unwrap();
        inside.drop_in("attachd-nbdkit.service", "[Service]\nDeviceAllow=block-loop rw\n").unwrap();
        Self { inside, api: Api::new("/run/attachd/attachd.sock") }
    }

    /// A host on which the package was installed and started.
    pub(crate) fn installed() -> Self {
        let host = Self::empty();
        host.install(package::deb());
        host
    }

    pub(crate) fn install(&self, deb: &Path) {
        self.run("dpkg", &["-i", deb.to_str().unwrap()]);
        assert_eq!(self.inside.property("attachd.service", "ActiveState").unwrap(), "active", "{}", self.story());
    }

    pub(crate) fn lab(&self) -> &Lab {
        &self.inside.lab
    }

    /// Runs a command as root. A failure shows the journal.
    pub(crate) fn run(&self, program: &str, args: &[&str]) -> String {
        self.inside.run(program, args).unwrap_or_else(|e| panic!("{e:#}\n{}", self.story()))
    }

    /// The same, printed as on a terminal. Returns how long it took.
    pub(crate) fn show(&self, program: &str, args: &[&str]) -> Duration {
        println!("# {program} {}", args.join(" "));
        let began = Instant::now();
        let said = self.run(program, args);
        let took = began.elapsed();
        for line in said.lines() {
            println!("  {line}");
        }
        took
    }

    pub(crate) fn intend(&self, volume: &Volume) {
        let answer = self.api.post("/api/v1/intents", &json!({ "volume_id": volume.id }));
        answer.and_then(|reply| reply.expect(201)).unwrap_or_else(|e| panic!("{e:#}\n{}", self.story()));
    }

    pub(crate) fn wait(&self, volume: &Volume, state: &str) -> Value {
        self.api.wait_volume(&volume.id, state, SOON).unwrap_or_else(|e| panic!("{e:#}\n{}", self.story()))
    }

    /// A volume that is served, and its disk.
    pub(crate) fn served(&self) -> (Volume, Disk) {
        let volume = self.lab().volume();
        let mut disk = self.lab().disk(&volume.serial, MIB).unwrap();
        self.intend(&volume);
        disk.attach().unwrap();
        self.wait(&volume, "ready");
        (volume, disk)
    }

    /// What there is to read after a failure.
    pub(crate) fn story(&self) -> String {
        format!("{}\n{}", self.inside.log(), self.inside.journal())
    }
}

/// Whether the daemon under test can tell systemd that it is ready.
fn notifies() -> bool {
    let program = fs::read(env!("CARGO_BIN_EXE_attachd")).unwrap();
    program.windows(b"NOTIFY_SOCKET".len()).any(|text| text == b"NOTIFY_SOCKET")
}
