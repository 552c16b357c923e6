//! The hypervisor's storage stalls: the disk's requests are not answered any more, and its readers in the guest hang
//! in the kernel.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lab::Volume;
use lab::child::Proc;
use lab::watch::FolderWatch;
use rustix::process::{Pid, Signal, kill_process};

use crate::disk::{Disk, MIB};
use crate::guest::Guest;
use crate::machine::Machine;

/// Longer than a restart takes under software emulation if nothing hangs.
const RESTART: Duration = Duration::from_mins(1);

/// More requests than the disk's queue can hold, because the serial is requested through the same queue. (The kernel
/// sends only few writes at once.)
const READERS: &str = "for i in $(seq 400); do dd if=$1 of=/dev/null bs=4k count=1 skip=$((i * 64)) iflag=direct 2>/dev/null & done; wait";

/// A storage server of the hypervisor.
struct Storage {
    server: Proc,
    socket: PathBuf,
}

impl Storage {
    fn of(folder: &Path, disk: &Disk) -> Self {
        let socket = folder.join("storage.sock");
        let watch = FolderWatch::new(folder).unwrap();
        let pid_file = folder.join("storage.pid");
        let mut nbdkit = Command::new("nbdkit");
        nbdkit.args(["-f", "-P"]).arg(&pid_file).arg("-U").arg(&socket).arg("file").arg(&disk.file);
        let server = Proc::spawn("nbdkit", &mut nbdkit).unwrap();
        while !watch.take().iter().any(|(name, written)| name == "storage.pid" && *written) {
            assert!(lab::watch::readable(&[watch.fd()], Duration::from_secs(20)).unwrap());
        }
        Self { server, socket }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.server.pid().cast_signed()).unwrap(), signal).unwrap();
    }
}

#[test]
fn a_disk_whose_storage_stalls_stays_served_and_keeps_nothing_else_from_working() {
    let guest = Guest::up("a_disk_whose_storage_stalls_stays_served_and_keeps_nothing_else_from_working", Machine::Q35);
    let folder = tempfile::tempdir().unwrap();
    let (stalled, other, late) = (Volume::random(), Volume::random(), Volume::random());
    let disk = guest.disk(&stalled, 160 * MIB);
    let storage = Storage::of(folder.path(), &disk);
    let disk = disk.behind(&storage.socket);
    let other_disk = guest.disk(&other, 4 * MIB);
    guest.intend_all(&[stalled.clone(), other.clone()]);
    // The hypervisor plugs no disk while it waits for the storage.
    let late_disk = guest.disk(&late, 2 * MIB);
    guest.plug_all(&[disk, other_disk.clone(), late_disk.clone()]);
    guest.wait(&stalled, "ready");
    guest.wait(&other, "ready");

    storage.signal(Signal::STOP);
    let node = guest.run(&format!("readlink -f /dev/disk/by-id/virtio-{}", stalled.serial));
    let name = node.trim().trim_start_matches("/dev/").to_owned();
    guest.run(&format!("cat >/run/readers <<'END'\n{READERS}\nEND"));
    guest.run(&format!("systemd-run -q --unit=readers sh /run/readers {}", node.trim()));
    // A reader that hangs cannot be killed; it is left behind.
    let hangs = format!(
        "cat /sys/block/{name}/serial </dev/null >/dev/null 2>&1 & sleep 0.5; grep -q '^State:.D' /proc/$!/status"
    );
    guest.eventually(&hangs);
    println!(
        "the control: nobody can read the serial any more; {} requests wait",
        guest.run(&format!("cat /sys/block/{name}/inflight")).trim()
    );

    // A resync revokes nothing.
    guest.run("timeout 60 attachctl resync || true");
    let shown = guest.show(&stalled);
    assert_eq!(shown["state"], "ready", "{shown:#}");
    let health = guest.output("attachctl --json health").out;
    assert!(health.contains("DISKS_UNREAD"), "{health}");
    guest.export_equals(&other, &other_disk);

    // A restart is quick, and the other volumes are served.
    let restarted = guest.output_within("systemctl restart attachd", RESTART);
    assert_eq!(restarted.code, 0, "{restarted:?}");
    guest.wait(&other, "ready");
    guest.export_equals(&other, &other_disk);
    guest.run(&format!("test -L /run/attachd/exports/{}", stalled.export()));
    guest.intend(&late);
    guest.wait(&late, "ready");
    guest.export_equals(&late, &late_disk);
    guest.run(&hangs);

    storage.signal(Signal::CONT);
    guest.wait(&stalled, "ready");
    guest.eventually("attachctl health");
    assert!(guest.is_served(&stalled));
    let story = guest.show(&stalled)["timeline"].to_string();
    assert!(!story.contains("revoked"), "{story}");
}
