//! Everything that was read about one disk at one moment.

use serde::{Deserialize, Serialize};

use super::DevNum;
use super::found::Found;
use super::scheme;
use crate::identity::Serial;

/// What was read about one whole disk. Nothing here is a judgement; [`super::evidence`] makes that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The kernel's number of the disk.
    pub devnum: DevNum,
    /// The kernel's name of the disk now, like `vdb`.
    pub name: String,
    /// The disk sequence number, read first.
    pub diskseq: u64,
    /// The disk sequence number, read again after everything else.
    pub diskseq_after: u64,
    /// Bytes.
    pub size_bytes: u64,
    /// The device refuses writes.
    pub read_only: bool,
    /// Which volume's disk it says it is, or why it says nothing usable.
    pub identity: Result<Identity, NoIdentity>,
}

/// A disk that names a serial, and what was read by means of that name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The scheme that knows this kind of disk.
    #[serde(deserialize_with = "scheme::named")]
    pub scheme: scheme::Name,
    /// `None`: that scheme is on. Otherwise the links that the schemes which are on would give the serial.
    pub instead: Option<Vec<String>>,
    /// The serial, read live.
    pub serial: Serial,
    /// The by-id path of the scheme for this serial.
    pub link: String,
    /// What that path resolves to.
    pub link_target: LinkTarget,
    /// The group that owns the disk's own node, where the link does not lead to it.
    #[serde(default)]
    pub node_group: Option<u32>,
    /// Who on this host uses the disk or one of its partitions.
    pub uses: Vec<Use>,
}

/// Why a disk cannot be matched with any volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum NoIdentity {
    /// No enabled scheme knows this kind of disk, and it is on no bus CloudStack attaches volumes to.
    #[error("it is on no bus that an enabled scheme accepts")]
    OtherBus,
    /// The disk has no serial.
    #[error("it has no serial (a VM that was not restarted since its volume was attached or restored shows none)")]
    NoSerial,
    /// The serial is not one CloudStack gives.
    #[error("its serial {0:?} is not 20 characters of 0-9 and a-f")]
    OddSerial(String),
    /// What has to be known could not be read: the serial, the use by the host, where the link leads. It may be all there.
    #[error("it could not be read: {0}")]
    Unreadable(String),
}

/// What the by-id path led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LinkTarget {
    /// There is no such path.
    Missing,
    /// A block device, and the group that owns its node.
    Device(DevNum, u32),
    /// Something that is not a block device.
    Other,
}

/// One use of a disk by this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Use {
    /// Mounted there.
    Mounted(String),
    /// Swap space.
    Swap,
    /// Under another block device (LVM, MD, crypt).
    Holder(String),
    /// Under this loop device.
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
    /// The serial, when the disk shows a usable one.
    pub fn serial(&self) -> Option<Serial> {
        self.identity.as_ref().ok().map(|identity| identity.serial)
    }

    /// The group that owns the disk's node, when there is one.
    pub fn group(&self) -> Option<u32> {
        let identity = self.identity.as_ref().ok()?;
        match identity.link_target {
            LinkTarget::Device(devnum, gid) if devnum == self.devnum => Some(gid),
            _ => identity.node_group,
        }
    }
}

impl Found<Facts> {
    /// Why something of the disk could not be read.
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
    fn the_group_of_a_disk_is_its_own_nodes_also_when_the_link_leads_to_its_twin() {
        let other = DevNum { minor: DEVNUM.minor + 16, ..DEVNUM };
        let twin = |target| spoilt(move |_, identity| (identity.link_target, identity.node_group) = (target, Some(7)));
        assert_eq!(twin(LinkTarget::Device(other, 990)).facts.group(), Some(7));
        assert_eq!(twin(LinkTarget::Missing).facts.group(), Some(7));
        assert_eq!(twin(LinkTarget::Device(DEVNUM, 990)).facts.group(), Some(990), "the control");
    }
}

#[cfg(test)]
pub(crate) mod sample {
    //! A disk that passes every check, to be spoilt in one place.

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

    /// What the checks make of it.
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
