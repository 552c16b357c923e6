//! `retrigger <serial>`: an `add` event for the one disk with that serial, so that udev's rules mark or un-mark it.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

use super::{CLAIMS, NBD_GROUP, Refusal, disks, id_of};
use crate::device::DevNum;
use crate::device::facts::{Facts, Use};
use crate::identity::Serial;

pub(super) fn retrigger(serial: Serial) -> Result<Value, Refusal> {
    // A file alone is a claim: attachd owns the folder, and could make anything else there.
    let claimed = fs::symlink_metadata(Path::new(CLAIMS).join(serial.as_str())).is_ok_and(|file| file.is_file());
    let nbd_gid = id_of("/etc/group", NBD_GROUP)?;
    let sysfs = disks::sysfs();
    let candidates = sysfs.list()?.into_iter().filter(|devnum| claimed || is_marked(*devnum, nbd_gid));
    let mut found = disks::read(&sysfs, candidates);
    found.retain(|disk| disk.serial() == Some(serial) && disk.diskseq == disk.diskseq_after);
    found.sort_by_key(|disk| disk.devnum);
    check(serial, claimed, &found)?;
    let mut done = Vec::new();
    // In the moment since the reading the number could have got another disk.
    for disk in found.iter().filter(|disk| sysfs.still(disk.devnum, disk.diskseq)) {
        // Not `change`: that would leave an un-claimed node with the NBD servers' group.
        fs::write(sysfs_file(disk.devnum), "add")
            .map_err(|error| io::Error::other(format!("cannot trigger {}: {error}", disk.name)))?;
        done.push(disk.devnum);
    }
    Ok(json!({ "devices": done }))
}

/// Whether this serial's disks are anybody's business here. Un-marking only takes rights away: it asks for less.
fn check(serial: Serial, claimed: bool, found: &[Facts]) -> Result<(), Refusal> {
    let names = || found.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>().join(" and ");
    let uses = found.iter().filter_map(|disk| disk.identity.as_ref().ok()).flat_map(|identity| &identity.uses);
    let uses: Vec<String> = uses.map(Use::to_string).collect();
    match found {
        [] if claimed => Err(Refusal::new("NOT_PRESENT", format!("no disk shows the serial {serial}"))),
        [] => Err(Refusal::new("NOT_CLAIMED", format!("{serial} is not claimed, and no disk of it is marked"))),
        _ if claimed && !uses.is_empty() => {
            Err(Refusal::new("IN_USE_BY_HOST", format!("this host uses {}: {}", names(), uses.join(", "))))
        }
        [_, _, ..] if claimed => Err(Refusal::new("DUPLICATE", format!("{} show the serial {serial}", names()))),
        _ => Ok(()),
    }
}

/// Whether the disk's node belongs to the NBD servers.
fn is_marked(devnum: DevNum, nbd_gid: u32) -> bool {
    let uevent = fs::read_to_string(sysfs_file(devnum)).unwrap_or_default();
    let node = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME=")).map(|name| Path::new("/dev").join(name));
    let stat = node.and_then(|node| rustix::fs::stat(node).ok());
    stat.is_some_and(|stat| DevNum::from_raw(stat.st_rdev) == devnum && stat.st_gid == nbd_gid)
}

fn sysfs_file(devnum: DevNum) -> String {
    format!("/sys/dev/block/{devnum}/uevent")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::facts::sample;

    #[test]
    fn marking_asks_for_one_disk_that_the_host_does_not_use() {
        let serial = sample::volume().serial();
        let code = |claimed, disks: &[Facts]| check(serial, claimed, disks).map_err(|refusal| refusal.code);
        let free = sample::device().facts;
        let used = sample::spoilt(|_, identity| identity.uses.push(Use::HostDisk)).facts;
        assert_eq!(code(true, &[free.clone()]), Ok(()));
        assert_eq!(code(true, &[]), Err("NOT_PRESENT"));
        assert_eq!(code(true, &[free.clone(), free.clone()]), Err("DUPLICATE"));
        assert_eq!(code(true, &[used.clone()]), Err("IN_USE_BY_HOST"));
        assert_eq!(code(true, &[free.clone(), used.clone()]), Err("IN_USE_BY_HOST"));
        assert_eq!(code(false, &[]), Err("NOT_CLAIMED"));
        assert_eq!(code(false, &[free.clone(), free]), Ok(()), "each is un-marked");
        assert_eq!(code(false, &[used]), Ok(()), "a disk of the host must not stay the NBD servers'");
    }
}
