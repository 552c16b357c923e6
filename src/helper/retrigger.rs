//! `retrigger <serial>`: sends an `add` event for the one disk with that serial, so that udev's rules mark or un-mark
//! it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::{fs, io};

use serde_json::{Value, json};

use super::servers::NBD;
use super::{CALLER, ErrorAnswer, HelperCode, here, host_disks};
use crate::accounts::id_of;
use crate::device::facts::{Facts, Use};
use crate::device::{DevNum, limited};
use crate::identity::Serial;
use crate::procfs::unless_gone;

/// The folder of claims, in which attachd writes one file per wanted serial.
pub(super) const CLAIMS: &str = "/var/lib/attachd/claims";

pub(super) fn retrigger(serial: Serial) -> Result<Value, ErrorAnswer> {
    let claimed = is_claimed(&Path::new(CLAIMS).join(serial.as_str()))?;
    let nbd_gid = id_of("/etc/group", NBD)?;
    let sysfs = host_disks::sysfs();
    // If the node's group is unknown, the disk is read and its serial decides.
    let candidate = |devnum: &DevNum| claimed || sysfs.node_group(*devnum).map_or(true, |gid| gid == Some(nbd_gid));
    let candidates = sysfs.list()?.into_iter().filter(candidate);
    let limited::Answers { here: mut found, unread } = limited::read_those_of(&sysfs, candidates, serial);
    check(serial, claimed, &found, &unread)?;
    // Since the reading another disk could have got the number.
    found.retain(|disk| !sysfs.still(disk.devnum, disk.diskseq).is_gone());
    for disk in &found {
        here(sysfs.still(disk.devnum, disk.diskseq), &disk.name)?;
        // A `change` event would not do: it would leave an un-claimed node in the NBD servers' group.
        fs::write(uevent(disk.devnum), "add")?;
    }
    Ok(json!({ "devices": found.iter().map(|disk| disk.devnum).collect::<Vec<_>>() }))
}

/// Returns whether this is a claim of attachd's. A symlink is not: its target may be something that only root may
/// see.
pub(super) fn is_claimed(claim: &Path) -> io::Result<bool> {
    let attachd = id_of("/etc/passwd", CALLER)?;
    let there = unless_gone(fs::symlink_metadata(claim))?;
    Ok(there.is_some_and(|there| there.is_file() && there.uid() == attachd))
}

/// Checks whether the disks with this serial may be retriggered. Un-marking only removes permissions, so it has fewer
/// conditions.
fn check(serial: Serial, claimed: bool, found: &[Facts], unread: &[String]) -> Result<(), ErrorAnswer> {
    let names = found.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>().join(" and ");
    let uses = found.iter().filter_map(|disk| disk.identity.as_ref().ok()).flat_map(|identity| &identity.uses);
    let uses = uses.map(Use::to_string).collect::<Vec<_>>().join(", ");
    let (code, why) = match found {
        [] if !unread.is_empty() => (HelperCode::Unread, format!("{serial} may be one of {}", unread.join(", "))),
        [] if claimed => (HelperCode::NotPresent, format!("no disk shows the serial {serial}")),
        [] => (HelperCode::NotClaimed, format!("{serial} is not claimed, and no disk of it is marked")),
        _ if claimed && !uses.is_empty() => (HelperCode::InUseByHost, format!("this host uses {names}: {uses}")),
        [_, _, ..] if claimed => (HelperCode::Duplicate, format!("{names} show the serial {serial}")),
        _ => return Ok(()),
    };
    Err(ErrorAnswer(code, why))
}

fn uevent(devnum: DevNum) -> String {
    format!("/sys/dev/block/{devnum}/uevent")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::facts::sample;

    #[test]
    fn marking_needs_exactly_one_disk_that_the_host_does_not_use() {
        let serial = sample::volume().serial();
        let code = |claimed, disks: &[Facts]| check(serial, claimed, disks, &[]).map_err(|refusal| refusal.0);
        let free = sample::device().facts;
        let used = sample::spoilt(|_, identity| identity.uses.push(Use::HostDisk)).facts;
        assert_eq!(code(true, std::slice::from_ref(&free)), Ok(()));
        assert_eq!(code(true, &[]), Err(HelperCode::NotPresent));
        let hangs = ["254:16 (no answer within 2 s)".to_owned()];
        let unread = |disks| check(serial, true, disks, &hangs).map_err(|refusal| refusal.0);
        assert_eq!((unread(&[]), unread(std::slice::from_ref(&free))), (Err(HelperCode::Unread), Ok(())));
        assert_eq!(code(true, &[free.clone(), free.clone()]), Err(HelperCode::Duplicate));
        assert_eq!(code(true, std::slice::from_ref(&used)), Err(HelperCode::InUseByHost));
        assert_eq!(code(true, &[free.clone(), used.clone()]), Err(HelperCode::InUseByHost));
        assert_eq!(code(false, &[]), Err(HelperCode::NotClaimed));
        assert_eq!(code(false, &[free.clone(), free]), Ok(()), "each is un-marked");
        assert_eq!(code(false, &[used]), Ok(()), "a disk of the host must not stay the NBD servers'");
    }
}
