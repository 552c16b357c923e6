//! Decides whether a device is the volume's disk. Every other decision rests on this one. Pure.

use std::borrow::Cow;
use std::sync::Arc;

use jiff::Timestamp;

use super::DevNum;
use super::facts::{LinkTarget, Use};
use super::table::Device;
use crate::identity::Serial;
use crate::reason::Code;

/// The checked facts that tie one device to one volume at one moment. Only [`check`] makes new evidence; the store
/// gives back recorded evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// The serial, read live from the device.
    pub serial: Serial,
    /// The scheme by which it was read.
    pub scheme: Cow<'static, str>,
    /// The by-id path, the only path that is ever exported.
    pub link: String,
    /// The device number at that moment.
    pub devnum: DevNum,
    /// The device's disk sequence number.
    pub diskseq: u64,
    /// The size in bytes.
    pub size_bytes: u64,
    /// Whether the device refuses writes.
    pub read_only: bool,
    /// The boot in which `devnum` and `diskseq` are valid.
    pub boot_id: Arc<str>,
    /// When the last check passed.
    pub at: Timestamp,
}

impl Evidence {
    /// Returns whether both describe the same disk in the same condition; only the time may differ.
    pub fn agrees(&self, other: &Self) -> bool {
        Self { at: other.at, ..self.clone() } == *other
    }
}

/// What evidence is compared with and what does not change while the daemon runs.
#[derive(Debug, Clone)]
pub struct Ground {
    /// The id of this boot.
    pub boot_id: Arc<str>,
    /// The NBD server's group. A disk's node must belong to it before the server can open the disk.
    pub nbd_gid: u32,
}

/// A failed check. Its code is its name, its text names every device and value, and [`Refusal::hint`] says what to
/// do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each field is named in its variant's message")]
pub enum Refusal {
    /// Several present devices have the serial.
    #[error("{} disks show the serial {serial}: {}", devices.len(), devices.join(" and "))]
    DuplicateSerial { serial: Serial, devices: Vec<String> },
    /// The device was exchanged while it was read.
    #[error("{device} was exchanged while it was being read (diskseq {before}, then {after})")]
    DiskseqMoved { device: String, before: u64, after: u64 },
    /// This kind of disk is not enabled.
    #[error("{device} shows the serial as {link}, but only {} is accepted", instead.join(" or "))]
    SchemeOff { device: String, scheme: &'static str, link: String, instead: Vec<String> },
    /// The host itself uses the disk.
    #[error("this host uses {device}: {}", uses.iter().map(Use::to_string).collect::<Vec<_>>().join(", "))]
    InUseByHost { device: String, uses: Vec<Use> },
    /// The device reports no capacity.
    #[error("{device} has size 0")]
    SizeZero { device: String },
    /// The device is smaller than the intent requires.
    #[error("{device} has {size} bytes, the intent named {wanted}")]
    SizeTooSmall { device: String, size: u64, wanted: u64 },
    /// udev has made no link.
    #[error("{link} does not exist although {device} has the serial")]
    LinkMissing { link: String, device: String },
    /// udev's link leads to another device.
    #[error("{link} leads to {target} instead of {device}")]
    LinkElsewhere { link: String, target: String, device: String },
    /// The NBD server has no permission to open the node yet.
    #[error("the node of {device} is not the NBD server's yet (its group is {gid})")]
    NotMarked { device: String, gid: u32 },
}

impl Refusal {
    /// Returns the check's code, as callers see it.
    pub fn code(&self) -> Code {
        match self {
            Self::DuplicateSerial { .. } => Code::DuplicateSerial,
            Self::DiskseqMoved { .. } => Code::DiskseqMoved,
            Self::SchemeOff { .. } => Code::SchemeOff,
            Self::InUseByHost { .. } => Code::InUseByHost,
            Self::SizeZero { .. } => Code::SizeZero,
            Self::SizeTooSmall { .. } => Code::SizeTooSmall,
            Self::LinkMissing { .. } => Code::LinkMissing,
            Self::LinkElsewhere { .. } => Code::LinkElsewhere,
            Self::NotMarked { .. } => Code::NotMarked,
        }
    }

    /// Returns whether udev would correct this by processing the disk again.
    pub fn wants_retrigger(&self) -> bool {
        matches!(self, Self::NotMarked { .. } | Self::LinkMissing { .. } | Self::LinkElsewhere { .. })
    }

    /// Returns what the operator can do.
    pub fn hint(&self) -> String {
        match self {
            Self::SchemeOff { scheme, .. } => self.code().hint_about(scheme),
            Self::LinkMissing { device, .. } | Self::LinkElsewhere { device, .. } | Self::NotMarked { device, .. } => {
                self.code().hint_about(device)
            }
            _ => self.code().hint().to_owned(),
        }
    }
}

/// Checks the devices that show a serial against the intent. `present` must not be empty.
///
/// The caller has already excluded other devices with [`super::facts::Facts::identity`] and the partition check:
/// every device here is a whole disk on an accepted bus, and its serial was read live.
pub fn check(
    ground: &Ground,
    present: &[&Device],
    wanted_bytes: Option<u64>,
    now: Timestamp,
) -> Option<Result<Evidence, Refusal>> {
    let facts = &present.first()?.facts;
    let identity = facts.identity.as_ref().ok()?;
    let device = format!("/dev/{}", facts.name);
    let judge = || {
        if present.len() > 1 {
            let mut devices: Vec<String> =
                present.iter().map(|device| format!("/dev/{} ({})", device.facts.name, device.facts.devnum)).collect();
            devices.sort();
            return Err(Refusal::DuplicateSerial { serial: identity.serial, devices });
        }
        if facts.diskseq != facts.diskseq_after {
            return Err(Refusal::DiskseqMoved { device, before: facts.diskseq, after: facts.diskseq_after });
        }
        if let Some(instead) = identity.instead.clone() {
            let (scheme, link) = (identity.scheme, identity.link.clone());
            return Err(Refusal::SchemeOff { device, scheme, link, instead });
        }
        if !identity.uses.is_empty() {
            return Err(Refusal::InUseByHost { device, uses: identity.uses.clone() });
        }
        if facts.size_bytes == 0 {
            return Err(Refusal::SizeZero { device });
        }
        if let Some(wanted) = wanted_bytes.filter(|wanted| facts.size_bytes < *wanted) {
            return Err(Refusal::SizeTooSmall { device, size: facts.size_bytes, wanted });
        }
        let link = identity.link.clone();
        let gid = match identity.link_target {
            LinkTarget::Device(devnum, gid) if devnum == facts.devnum => gid,
            LinkTarget::Device(other, _) => {
                return Err(Refusal::LinkElsewhere { link, target: format!("device {other}"), device });
            }
            LinkTarget::Other => {
                return Err(Refusal::LinkElsewhere {
                    link,
                    target: "something that is no block device".into(),
                    device,
                });
            }
            LinkTarget::Missing => return Err(Refusal::LinkMissing { link, device }),
        };
        if gid != ground.nbd_gid {
            return Err(Refusal::NotMarked { device, gid });
        }
        Ok(Evidence {
            serial: identity.serial,
            scheme: identity.scheme.into(),
            link,
            devnum: facts.devnum,
            diskseq: facts.diskseq,
            size_bytes: facts.size_bytes,
            read_only: facts.read_only,
            boot_id: ground.boot_id.clone(),
            at: now,
        })
    };
    Some(judge())
}

#[cfg(test)]
mod tests {
    use super::super::facts::sample::{DEVNUM, SIZE, device, ground, spoilt, volume};
    use super::*;

    const OTHER: DevNum = DevNum { major: 254, minor: 32 };

    fn judge(present: &[&Device], wanted: Option<u64>) -> Result<Evidence, Refusal> {
        check(&ground(), present, wanted, Timestamp::UNIX_EPOCH).unwrap()
    }

    #[test]
    fn a_sound_disk_is_evidence_with_everything_it_rests_on() {
        let evidence = judge(&[&device()], Some(SIZE)).unwrap();
        let expected = Evidence {
            serial: volume().serial(),
            scheme: "virtio".into(),
            link: "/dev/disk/by-id/virtio-b3bb93101b594f6297e8".into(),
            devnum: DEVNUM,
            diskseq: 5,
            size_bytes: SIZE,
            read_only: false,
            boot_id: "this boot".into(),
            at: Timestamp::UNIX_EPOCH,
        };
        assert_eq!(evidence, expected);
    }

    #[test]
    fn every_failed_check_is_refused_by_its_name_and_says_what_to_do() {
        let twin = spoilt(|facts, _| (facts.devnum, facts.name) = (OTHER, "vdc".into()));
        let cases = [
            ("DISKSEQ_MOVED", spoilt(|facts, _| facts.diskseq_after = 6), "diskseq 5, then 6", "event of the new disk"),
            (
                "SCHEME_OFF",
                spoilt(|_, id| {
                    id.scheme = "scsi";
                    id.link = "/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_b3bb93101b594f6297e8".into();
                    id.instead = Some(vec!["/dev/disk/by-id/virtio-b3bb93101b594f6297e8".into()]);
                }),
                "as /dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_b3bb93101b594f6297e8, but only /dev/disk/by-id/virtio-b3bb",
                "add \"scsi\" to [device] schemes",
            ),
            (
                "IN_USE_BY_HOST",
                spoilt(|_, id| id.uses = vec![Use::Mounted("/srv".into()), Use::Swap]),
                "mounted at /srv, used as swap",
                "attachctl resync",
            ),
            ("SIZE_ZERO", spoilt(|facts, _| facts.size_bytes = 0), "/dev/vdb has size 0", "CloudStack"),
            ("SIZE_TOO_SMALL", spoilt(|facts, _| facts.size_bytes = SIZE - 1), "1073741823 bytes", "CloudStack"),
            (
                "LINK_MISSING",
                spoilt(|_, id| id.link_target = LinkTarget::Missing),
                "does not exist",
                "udevadm trigger --action=change /dev/vdb",
            ),
            (
                "LINK_ELSEWHERE",
                spoilt(|_, id| id.link_target = LinkTarget::Device(OTHER, 990)),
                "leads to device 254:32",
                "udevadm trigger --action=change /dev/vdb",
            ),
            (
                "LINK_ELSEWHERE",
                spoilt(|_, id| id.link_target = LinkTarget::Other),
                "no block device",
                "udevadm trigger --action=change /dev/vdb",
            ),
            (
                "NOT_MARKED",
                spoilt(|_, id| id.link_target = LinkTarget::Device(DEVNUM, 6)),
                "its group is 6",
                "udevadm trigger --action=add /dev/vdb",
            ),
        ];
        for (code, device, says, hint) in cases {
            let refusal = judge(&[&device], Some(SIZE)).unwrap_err();
            assert_eq!(refusal.code().name(), code);
            assert!(refusal.to_string().contains(says), "{code}: {refusal}");
            assert!(refusal.hint().contains(hint), "{code}: {}", refusal.hint());
            let udev_helps = ["LINK_MISSING", "LINK_ELSEWHERE", "NOT_MARKED"].contains(&code);
            assert_eq!(refusal.wants_retrigger(), udev_helps, "{code}");
        }
        let refusal = judge(&[&device(), &twin], None).unwrap_err();
        assert_eq!(refusal.code().name(), "DUPLICATE_SERIAL");
        assert!(refusal.to_string().contains("/dev/vdb (254:16) and /dev/vdc (254:32)"), "{refusal}");
        assert!(refusal.hint().contains("Detach"), "{}", refusal.hint());
    }

    #[test]
    fn a_disk_larger_than_the_intent_requires_passes_and_without_a_required_size_any_size_passes() {
        assert!(judge(&[&device()], Some(SIZE - 512)).is_ok());
        assert!(judge(&[&device()], None).is_ok());
        assert!(judge(&[&device()], Some(SIZE + 1)).is_err());
    }

    #[test]
    fn without_a_disk_or_a_serial_check_returns_none() {
        assert!(check(&ground(), &[], None, Timestamp::UNIX_EPOCH).is_none());
        let mut nameless = device();
        nameless.facts.identity = Err(super::super::facts::NoIdentity::NoSerial);
        assert!(check(&ground(), &[&nameless], None, Timestamp::UNIX_EPOCH).is_none());
    }

    #[test]
    fn evidence_agrees_whenever_only_the_time_differs() {
        let evidence = judge(&[&device()], None).unwrap();
        let later = Evidence { at: Timestamp::MAX, ..evidence.clone() };
        assert!(evidence.agrees(&later));
        for other in [
            Evidence { diskseq: 6, ..evidence.clone() },
            Evidence { devnum: OTHER, ..evidence.clone() },
            Evidence { boot_id: "the boot before".into(), ..evidence.clone() },
            Evidence { size_bytes: 1, ..evidence.clone() },
            Evidence { read_only: true, ..evidence.clone() },
        ] {
            assert!(!evidence.agrees(&other), "{other:?}");
        }
    }
}
