//! A host with systemd, and attachd on it.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use lab::systemd_box::{SystemdBox, rules_for_loops};
use lab::{Api, Disk, Lab, Volume};
use serde_json::{Value, json};

use crate::package;

pub(crate) const MIB: u64 = 1 << 20;

/// The box's configuration, at a path that is not the package's.
pub(crate) const CONFIG: &str = "/run/lab/attachd.toml";

/// Longer than anything that works takes.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) struct Host {
    pub(crate) inside: SystemdBox,
    pub(crate) api: Api,
}

impl Host {
    /// A host without attachd. It has already what a host with loop devices in place of virtio disks needs: the
    /// rules, the scheme, the device class.
    pub(crate) fn empty() -> Self {
        Self::prepared(SystemdBox::new())
    }

    /// A host whose root file system is on this volume's disk, like a host that was deployed from a volume, with
    /// attachd installed.
    pub(crate) fn installed_on(volume: &Volume) -> (Disk, Self) {
        let (disk, inside) = SystemdBox::on_root_volume(volume);
        let host = Self::prepared(inside);
        // As at boot, udev processes devices that existed before it.
        host.run("udevadm", &["trigger", "--action=add", "--settle", disk.node().to_str().unwrap()]);
        host.install(&package::deb());
        (disk, host)
    }

    fn prepared(inside: SystemdBox) -> Self {
        let shipped = include_str!("../../udev-rules/59-attachd.rules");
        // A file of the same name in /run takes precedence over the package's.
        fs::write("/run/udev/rules.d/59-attachd.rules", rules_for_loops(shipped)).unwrap();
        fs::write(CONFIG, "[device]\nschemes = [\"loop\"]\n").unwrap();
        let daemon = format!("[Service]\nExecStart=\nExecStart=/usr/sbin/attachd --config {CONFIG}\n");
        inside.drop_in("attachd.service", &daemon).unwrap();
        inside.drop_in("attachd-nbdkit.service", "[Service]\nDeviceAllow=block-loop rw\n").unwrap();
        inside.drop_in("attachd-helper.service", "[Service]\nDeviceAllow=block-loop r\n").unwrap();
        Self { inside, api: Api::new("/run/attachd/attachd.sock") }
    }

    /// A host on which the package is installed and started.
    pub(crate) fn installed() -> Self {
        let host = Self::empty();
        host.install(&package::deb());
        host
    }

    pub(crate) fn install(&self, deb: &Path) {
        self.run("dpkg", &["-i", bring(deb)]);
        assert_eq!(self.inside.property("attachd.service", "ActiveState").unwrap(), "active", "{}", self.story());
    }

    pub(crate) fn lab(&self) -> &Lab {
        &self.inside.lab
    }

    /// Runs a command as root. A failure shows the journal.
    pub(crate) fn run(&self, program: &str, args: &[&str]) -> String {
        self.inside.run(program, args).unwrap_or_else(|e| panic!("{e:#}\n{}", self.story()))
    }

    /// As [`Host::run`], printed as at a terminal. Returns how long it took.
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

    /// Returns the helper's answer to root, from inside the box (Perl is there wherever dpkg is).
    pub(crate) fn ask_helper(&self, line: &str) -> Value {
        const ASK: &str = r#"use IO::Socket::UNIX;
            my $helper = IO::Socket::UNIX->new(Peer => "/run/attachd/helper.sock") or die "$!";
            print $helper $ARGV[0]; $helper->flush; print <$helper>;"#;
        let answer = self.run("perl", &["-e", ASK, line]);
        serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{e}: {answer}\n{}", self.story()))
    }

    pub(crate) fn wait(&self, volume: &Volume, state: &str) -> Value {
        self.api.wait_volume(&volume.id, state, SOON).unwrap_or_else(|e| panic!("{e:#}\n{}", self.story()))
    }

    /// Makes a volume that is served, with its disk.
    pub(crate) fn served(&self) -> (Volume, Disk) {
        let volume = self.lab().volume();
        let mut disk = self.lab().disk(&volume.serial, MIB).unwrap();
        self.intend(&volume);
        disk.attach().unwrap();
        self.wait(&volume, "ready");
        (volume, disk)
    }

    pub(crate) fn shown(&self, volume: &Volume) -> Value {
        let reply = self.api.get(&format!("/api/v1/volumes/{}", volume.id)).unwrap();
        reply.expect(200).unwrap_or_else(|e| panic!("{e:#}\n{}", self.story()))
    }

    /// Withdraws a volume.
    pub(crate) fn withdraw(&self, volume: &Volume) {
        let answer = self.api.delete(&format!("/api/v1/intents/{}", volume.id));
        answer.and_then(|reply| reply.expect(200)).unwrap_or_else(|e| panic!("{e:#}\n{}", self.story()));
    }

    /// Returns lines of a process's `/proc/PID/status`.
    pub(crate) fn process(&self, unit: &str, field: &str) -> String {
        let pid = self.inside.main_pid(unit).unwrap();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Returns what helps to explain a failure.
    pub(crate) fn story(&self) -> String {
        self.inside.journal()
    }
}

/// Adds lines to the daemon's configuration.
pub(crate) fn append_to_config(lines: &str) {
    let mut file = fs::File::options().append(true).open(CONFIG).unwrap();
    file.write_all(lines.as_bytes()).unwrap();
}

/// Copies a package into the box, which has its own `/tmp`.
pub(crate) fn bring(deb: &Path) -> &'static str {
    fs::copy(deb, "/run/lab/attachd.deb").unwrap();
    "/run/lab/attachd.deb"
}

/// Returns the number of a group or user in the box.
pub(crate) fn id_of(file: &str, name: &str) -> u32 {
    let text = fs::read_to_string(file).unwrap();
    let line = text.lines().find(|line| line.split(':').next() == Some(name)).unwrap();
    line.split(':').nth(2).unwrap().parse().unwrap()
}
