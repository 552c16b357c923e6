//! All facts that were read about one disk at one moment.

use serde::{Deserialize, Serialize};

use super::DevNum;
use super::found::Found;
use super::scheme;
use crate::identity::Serial;

/// The facts about one whole disk. They contain no judgement; [`super::evidence`] makes the judgement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The disk's device number.
    pub devnum: DevNum,
    /// The disk's kernel name now, like `vdb`.
    pub name: String,
    /// The disk sequence number, read first.
    pub diskseq: u64,
    /// The disk sequence number, read again after everything else.
    pub diskseq_after: u64,
    /// The size in bytes.
    pub size_bytes: u64,
    /// Whether the device refuses writes.
    pub read_only: bool,
    /// The serial and what depends on it, or why the disk has no usable serial.
    pub identity: Result<Identity, NoIdentity>,
}

/// A disk's serial, and what was read with its help.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The scheme for this kind of disk.
    #[serde(deserialize_with = "scheme::named")]
    pub scheme: scheme::Name,
    /// `None` if the scheme is enabled. Otherwise the links that the enabled schemes would give this serial.
    pub instead: Option<Vec<String>>,
    /// The serial, read live.
    pub serial: Serial,
    /// The scheme's by-id path for this serial.
    pub link: String,
    /// What this path resolves to.
    pub link_target: LinkTarget,
    /// The group of the disk's own node, if the link does not lead to it.
    #[serde(default)]
    pub node_group: Option<u32>,
    /// How this host uses the disk or its partitions.
    pub uses: Vec<Use>,
}

/// Why a disk cannot be matched with any volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum NoIdentity {
    /// No enabled scheme knows this kind of disk, and CloudStack attaches no volumes to its bus.
    #[error("it is on no bus that an enabled scheme accepts")]
    OtherBus,
    /// The disk has no serial.
    #[error("it has no serial (a VM that was not restarted since its volume was attached or restored shows none)")]
    NoSerial,
    /// The serial does not have CloudStack's format.
    #[error("its serial {0:?} is not 20 characters of 0-9 and a-f")]
    OddSerial(String),
    /// A fact could not be read: the serial, the use by the host, or the link's target. All of them may exist.
    #[error("it could not be read: {0}")]
    Unreadable(String),
}

/// What the by-id path resolves to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LinkTarget {
    /// The path does not exist.
    Missing,
    /// A block device, and the group of its node.
    Device(DevNum, u32),
    /// Something that is not a block device.
    Other,
}

/// One use of a disk by this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Use {
    /// Mounted at this path.
    Mounted(String),
    /// Swap space.
    Swap,
    /// Below another block device (LVM, MD, crypt).
    Holder(String),
    /// Below this loop device.
    Loop(String),
    /// Listed in the host-disks folder.
    HostDisk,
}

impl std::fmt::Display for Use {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mounted(place) => write!(f, "mounted at {place}"),
            Self::Swap => f.write_str("used as swap"),
            Self::Holder(name) => write!(f, "held by {name}"),
            Self::Loop(name) => write!(f, "under the loop device {name}"),
            Self::HostDisk => f.write_str("listed as a host disk"),
        }
    }
}

impl Facts {
    /// Returns the serial, if the disk has a usable one.
    pub fn serial(&self) -> Option<Serial> {
        self.identity.as_ref().ok().map(|identity| identity.serial)
    }

    /// Returns the group of the disk's node, if there is a node.
    pub fn group(&self) -> Option<u32> {
        let identity = self.identity.as_ref().ok()?;
        match identity.link_target {
            LinkTarget::Device(devnum, gid) if devnum == self.devnum => Some(gid),
            _ => identity.node_group,
        }
    }
}

impl Found<Facts> {
    /// Returns why a fact about the disk could not be read, if so.
    pub fn unread(&self) -> Option<&str> {
        match self {
            Self::Unknown(why) | Self::Here(Facts { identity: Err(NoIdentity::Unreadable(why)), .. }) => Some(why),
            Self::Here(_) | Self::Gone => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sample::{DEVNUM, spoilt};

    #[test]
    fn the_group_of_a_disk_is_that_of_its_own_node_even_when_the_link_leads_to_a_duplicate() {
        let other = DevNum { minor: DEVNUM.minor + 16, ..DEVNUM };
        let twin = |target| spoilt(move |_, identity| (identity.link_target, identity.node_group) = (target, Some(7)));
        assert_eq!(twin(LinkTarget::Device(other, 990)).facts.group(), Some(7));
        assert_eq!(twin(LinkTarget::Missing).facts.group(), Some(7));
        assert_eq!(twin(LinkTarget::Device(DEVNUM, 990)).facts.group(), Some(990), "the control");
    }
}

#[cfg(test)]
pub(crate) mod sample {
    //! A disk that passes every check; tests change one fact of it.

    use super::*;
    use crate::clock;
    use crate::device::evidence::{Evidence, Ground, check};
    use crate::device::table::Device;
    use crate::identity::VolumeId;

    pub(crate) const DEVNUM: DevNum = DevNum { major: 254, minor: 16 };
    pub(crate) const SIZE: u64 = 1 << 30;
    const NBD_GID: u32 = 990;

    pub(crate) fn volume() -> VolumeId {
        "b3bb9310-1b59-4f62-97e8-cefffdfe3804".parse().unwrap()
    }

    pub(crate) fn ground() -> Ground {
        Ground { boot_id: "this boot".into(), nbd_gid: NBD_GID }
    }

    /// The evidence that the checks make of it.
    pub(crate) fn evidence() -> Evidence {
        check(&ground(), &[&device()], None, clock::wall()).unwrap().unwrap()
    }

    pub(crate) fn device() -> Device {
        let identity = Identity {
            scheme: "virtio",
            instead: None,
            serial: volume().serial(),
            link: format!("/dev/disk/by-id/virtio-{}", volume().serial()),
            link_target: LinkTarget::Device(DEVNUM, NBD_GID),
            node_group: None,
            uses: Vec::new(),
        };
        let facts = Facts {
            devnum: DEVNUM,
            name: "vdb".into(),
            diskseq: 5,
            diskseq_after: 5,
            size_bytes: SIZE,
            read_only: false,
            identity: Ok(identity),
        };
        Device { facts, reading: 1, settled: true, heard_at: None }
    }

    pub(crate) fn spoilt(spoil: impl FnOnce(&mut Facts, &mut Identity)) -> Device {
        let mut device = device();
        let mut identity = device.facts.identity.clone().unwrap();
        spoil(&mut device.facts, &mut identity);
        device.facts.identity = Ok(identity);
        device
    }
}
