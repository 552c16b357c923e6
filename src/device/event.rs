//! One event about one whole disk, copied out of libudev's memory.

use jiff::Timestamp;

use super::DevNum;
use crate::clock;

/// The sender of an event, ordered by how much the event proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The kernel: only the device itself is certain.
    Kernel,
    /// udevd, after its rules ran: links and permissions are in place.
    Udev,
}

/// An owned copy of an event about a disk. It is a hint and never a fact, because any process with `CAP_NET_ADMIN`
/// can forge one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskEvent {
    /// The sender.
    pub origin: Origin,
    /// `add`, `change`, `remove` and others. Only for the journal; decisions read sysfs.
    pub action: String,
    /// The device.
    pub devnum: DevNum,
    /// The kernel's sequence number. udevd repeats it, which pairs the events of both senders.
    pub seqnum: u64,
    /// The disk sequence number in the event; absent before Linux 5.15.
    pub diskseq: Option<u64>,
    /// When it was received.
    pub at: Timestamp,
}

impl DiskEvent {
    /// Copies an event from its properties. `None` if the event is not about a whole disk or is malformed.
    ///
    /// The check of DEVTYPE is necessary: partitions carry the `ID_SERIAL` and `DISKSEQ` of their disk, so `blockdev
    /// --rereadpt` would look like a detach.
    pub fn from_properties(origin: Origin, property: impl Fn(&str) -> Option<String>) -> Option<Self> {
        if property("SUBSYSTEM")? != "block" || property("DEVTYPE")? != "disk" {
            return None;
        }
        Some(Self {
            origin,
            action: property("ACTION")?,
            devnum: DevNum { major: property("MAJOR")?.parse().ok()?, minor: property("MINOR")?.parse().ok()? },
            seqnum: property("SEQNUM")?.parse().ok()?,
            diskseq: property("DISKSEQ").and_then(|text| text.parse().ok()),
            at: clock::wall(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn parse(text: &str) -> Option<DiskEvent> {
        let properties: HashMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
        DiskEvent::from_properties(Origin::Udev, |key| properties.get(key).map(|value| (*value).to_owned()))
    }

    const ATTACH: &str = "ACTION=add\nDEVPATH=/devices/pci0000:00/0000:00:02.0/virtio0/block/vda\nSUBSYSTEM=block\n\
        DEVNAME=/dev/vda\nDEVTYPE=disk\nDISKSEQ=1\nSEQNUM=907\nID_SERIAL=b3bb93101b594f6297e8\nMAJOR=254\nMINOR=0\n";

    #[test]
    fn the_recorded_attach_of_a_virtio_disk_is_read() {
        let event = parse(ATTACH).unwrap();
        assert_eq!(event.devnum, DevNum { major: 254, minor: 0 });
        assert_eq!((event.action.as_str(), event.seqnum, event.diskseq), ("add", 907, Some(1)));
    }

    #[test]
    fn a_partition_with_its_disks_serial_is_not_a_disk_event() {
        assert_eq!(parse(&ATTACH.replace("DEVTYPE=disk", "DEVTYPE=partition")), None);
    }

    #[test]
    fn every_line_missing_or_garbled_is_refused_or_harmless() {
        for (index, line) in ATTACH.lines().enumerate() {
            let without: String =
                ATTACH.lines().enumerate().filter(|(i, _)| *i != index).fold(String::new(), |s, (_, l)| s + l + "\n");
            let needed = !["DEVPATH", "DEVNAME", "DISKSEQ", "ID_SERIAL"].iter().any(|key| line.starts_with(key));
            assert_eq!(parse(&without).is_none(), needed, "without {line}");
        }
        assert_eq!(parse(&ATTACH.replace("MINOR=0", "MINOR=-1")), None);
        assert_eq!(parse(&ATTACH.replace("DISKSEQ=1", "DISKSEQ=x")).unwrap().diskseq, None);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "([A-Z]{1,9}=[ -~]{0,12}\n){0,12}") {
            let _ = parse(&text);
        }
    }
}
