//! `host-disks`: writes down the serials of the disks this host lives on. Adds, never removes: a host disk that is not in
//! use just now stays one.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;

use serde_json::{Value, json};

use super::{Refusal, disks};
use crate::device::facts::{Facts, Use};
use crate::device::host::HostUse;
use crate::device::sysfs::Sysfs;
use crate::device::{DevNum, scheme};

/// One file per serial that is never to be claimed.
const HOST_DISKS: &str = "/etc/attachd/host-disks";
/// Where a host's own file systems are mounted.
const HOME: [&str; 5] = ["/", "/boot", "/boot/efi", "/usr", "/var"];

/// The running kernel's disks.
pub(super) fn sysfs() -> Sysfs {
    Sysfs::new(scheme::ALL.to_vec(), HOST_DISKS.into())
}

pub(super) fn host_disks() -> Result<Value, Refusal> {
    let host = HostUse::read(Path::new("/proc"))?;
    let is_home = |used: &Use| matches!(used, Use::Swap) || matches!(used, Use::Mounted(at) if HOME.contains(&&**at));
    let mut whole = BTreeSet::new();
    for devnum in sysfs().list()?.into_iter().filter(|devnum| host.of(*devnum).iter().any(is_home)) {
        below(Path::new("/sys/dev/block"), devnum, &mut whole);
    }
    let found = disks::read(&sysfs(), whole);
    let names: BTreeSet<&str> = found.iter().map(|disk| &*disk.name).collect();
    let serials: BTreeSet<_> = found.iter().filter_map(Facts::serial).collect();
    fs::create_dir_all(HOST_DISKS)?;
    for serial in &serials {
        File::options().create(true).append(true).open(Path::new(HOST_DISKS).join(serial.as_str()))?;
    }
    Ok(json!({ "serials": serials, "disks": names }))
}

/// Collects the whole disks that a block device sits on: a partition's disk, and what LVM, MD or crypt are made of.
fn below(numbers: &Path, devnum: DevNum, whole: &mut BTreeSet<DevNum>) {
    let Ok(device) = fs::canonicalize(numbers.join(devnum.to_string())) else { return };
    let disk = if device.join("partition").exists() { device.parent().unwrap_or(&device) } else { &device };
    let slaves = fs::read_dir(disk.join("slaves")).into_iter().flatten().flatten().map(|slave| slave.path());
    let under: Vec<DevNum> = slaves.filter_map(|slave| number(&slave)).collect();
    if under.is_empty() {
        whole.extend(number(disk));
    }
    for devnum in under {
        below(numbers, devnum, whole);
    }
}

fn number(device: &Path) -> Option<DevNum> {
    fs::read_to_string(device.join("dev")).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// sysfs as far as the walk looks: `/sys/dev/block/M:m`, `dev`, `partition`, `slaves/`.
    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("dev/block")).unwrap();
            Self(dir)
        }

        fn device(&self, path: &str, devnum: &str, slaves: &[&str]) {
            let device = self.0.path().join(path);
            fs::create_dir_all(device.join("slaves")).unwrap();
            fs::write(device.join("dev"), format!("{devnum}\n")).unwrap();
            symlink(&device, self.0.path().join("dev/block").join(devnum)).unwrap();
            for slave in slaves {
                let to = self.0.path().join(slave);
                symlink(&to, device.join("slaves").join(to.file_name().unwrap())).unwrap();
            }
        }

        fn partition(&self, path: &str, devnum: &str) {
            self.device(path, devnum, &[]);
            fs::remove_dir(self.0.path().join(path).join("slaves")).unwrap();
            fs::write(self.0.path().join(path).join("partition"), "1\n").unwrap();
        }

        fn below(&self, devnum: &str) -> Vec<String> {
            let mut whole = BTreeSet::new();
            below(&self.0.path().join("dev/block"), devnum.parse().unwrap(), &mut whole);
            whole.iter().map(DevNum::to_string).collect()
        }
    }

    #[test]
    fn what_a_host_lives_on_is_found_through_partition_crypt_lvm_and_md() {
        let tree = Tree::new();
        for (disk, number) in [("vda", 0), ("vdb", 16), ("vdc", 32)] {
            tree.device(disk, &format!("254:{number}"), &[]);
            tree.partition(&format!("{disk}/{disk}1"), &format!("254:{}", number + 1));
        }
        tree.device("md0", "9:0", &["vda/vda1", "vdb/vdb1"]);
        tree.partition("md0/md0p1", "259:0");
        tree.device("dm-0", "253:0", &["md0/md0p1"]);
        tree.device("dm-1", "253:1", &["dm-0", "vdc"]);
        assert_eq!(tree.below("254:0"), ["254:0"], "a file system on the whole disk");
        assert_eq!(tree.below("254:1"), ["254:0"], "on a partition");
        assert_eq!(tree.below("9:0"), ["254:0", "254:16"], "on a mirror");
        assert_eq!(tree.below("253:0"), ["254:0", "254:16"], "crypt on a partition of the mirror");
        assert_eq!(tree.below("253:1"), ["254:0", "254:16", "254:32"], "a volume of two physical volumes");
        assert!(tree.below("8:0").is_empty(), "gone meanwhile");
    }
}
