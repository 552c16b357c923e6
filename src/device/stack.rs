//! What a block device sits on: a partition on its disk, LVM, MD and crypt on theirs.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::DevNum;

/// Collects the whole disks that a block device sits on: a partition's disk, and what LVM, MD or crypt are made of.
pub fn whole_disks(numbers: &Path, devnum: DevNum, whole: &mut BTreeSet<DevNum>) {
    let Ok(device) = fs::canonicalize(numbers.join(devnum.to_string())) else { return };
    let disk = if device.join("partition").exists() { device.parent().unwrap_or(&device) } else { &device };
    let slaves = fs::read_dir(disk.join("slaves")).into_iter().flatten().flatten().map(|slave| slave.path());
    let under: Vec<DevNum> = slaves.filter_map(|slave| number(&slave)).collect();
    if under.is_empty() {
        whole.extend(number(disk));
    }
    for devnum in under {
        whole_disks(numbers, devnum, whole);
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

        fn whole_disks(&self, devnum: &str) -> Vec<String> {
            let mut whole = BTreeSet::new();
            whole_disks(&self.0.path().join("dev/block"), devnum.parse().unwrap(), &mut whole);
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
        assert_eq!(tree.whole_disks("254:0"), ["254:0"], "a file system on the whole disk");
        assert_eq!(tree.whole_disks("254:1"), ["254:0"], "on a partition");
        assert_eq!(tree.whole_disks("9:0"), ["254:0", "254:16"], "on a mirror");
        assert_eq!(tree.whole_disks("253:0"), ["254:0", "254:16"], "crypt on a partition of the mirror");
        assert_eq!(tree.whole_disks("253:1"), ["254:0", "254:16", "254:32"], "a volume of two physical volumes");
        assert!(tree.whole_disks("8:0").is_empty(), "gone meanwhile");
    }
}
