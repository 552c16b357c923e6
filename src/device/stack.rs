//! Finds the disks below a block device: a partition's disk, and the disks of LVM, MD, crypt and loop devices.

use std::collections::BTreeSet;
use std::path::Path;
use std::{fs, io};

use super::facts::Use;
use super::{DevNum, loops};
use crate::procfs::unless_gone;

/// Collects the whole disks below a block device into `whole`: a partition's disk, and the disks of an LVM, MD, crypt
/// or loop device.
pub fn whole_disks(numbers: &Path, devnum: DevNum, whole: &mut BTreeSet<DevNum>) -> io::Result<()> {
    let Some(device) = unless_gone(fs::canonicalize(numbers.join(devnum.to_string())))? else { return Ok(()) };
    let disk = if device.join("partition").try_exists()? { device.parent().unwrap_or(&device) } else { &device };
    let mut under = BTreeSet::from_iter(loops::below(disk)?);
    for slave in unless_gone(fs::read_dir(disk.join("slaves")))?.into_iter().flatten() {
        under.extend(number(&slave?.path())?);
    }
    if under.is_empty() {
        whole.extend(number(disk)?);
    }
    for devnum in under {
        whole_disks(numbers, devnum, whole)?;
    }
    Ok(())
}

/// Returns which devices LVM, MD and crypt on this host use. `sys` is the mount point of sysfs.
pub(super) fn uses(sys: &Path) -> io::Result<Vec<(DevNum, Use)>> {
    let mut uses = Vec::new();
    for device in unless_gone(fs::read_dir(sys.join("block")))?.into_iter().flatten() {
        let device = device?;
        for slave in unless_gone(fs::read_dir(device.path().join("slaves")))?.into_iter().flatten() {
            let used = Use::Holder(device.file_name().to_string_lossy().into_owned());
            uses.extend(number(&slave?.path())?.map(|below| (below, used)));
        }
    }
    Ok(uses)
}

fn number(device: &Path) -> io::Result<Option<DevNum>> {
    let Some(text) = unless_gone(fs::read_to_string(device.join("dev")))? else { return Ok(None) };
    let number = text.parse().map_err(|()| io::Error::other(format!("{}/dev holds {text:?}", device.display())))?;
    Ok(Some(number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// The parts of sysfs that the walk reads: `/sys/dev/block/M:m`, `dev`, `partition`, `slaves/`.
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
            whole_disks(&self.0.path().join("dev/block"), devnum.parse().unwrap(), &mut whole).unwrap();
            whole.iter().map(DevNum::to_string).collect()
        }
    }

    #[test]
    fn the_hosts_disks_are_found_through_partition_crypt_lvm_and_md() {
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

    #[test]
    fn a_device_built_on_another_is_a_use_of_that_one() {
        let tree = Tree::new();
        tree.device("block/vdb", "254:16", &[]);
        tree.partition("block/vdb/vdb1", "254:17");
        tree.device("block/vdc", "254:32", &[]);
        tree.device("block/dm-0", "253:0", &["block/vdb/vdb1", "block/vdc"]);
        let mut found = uses(tree.0.path()).unwrap();
        found.sort_by_key(|(below, _)| *below);
        let by = || Use::Holder("dm-0".into());
        assert_eq!(found, [("254:17".parse().unwrap(), by()), ("254:32".parse().unwrap(), by())]);
        assert_eq!(uses(&tree.0.path().join("nothing")).unwrap(), []);
    }

    #[test]
    fn an_unreadable_device_is_an_error_and_not_left_out() {
        let tree = Tree::new();
        tree.device("vda", "254:0", &[]);
        tree.device("dm-0", "253:0", &["vda"]);
        let find = || whole_disks(&tree.0.path().join("dev/block"), "253:0".parse().unwrap(), &mut BTreeSet::new());
        assert!(find().is_ok(), "the control");
        fs::write(tree.0.path().join("vda/dev"), "odd\n").unwrap();
        assert!(find().is_err());
    }
}
