//! QEMU's SCSI disks (virtio-scsi), which CloudStack gives a guest whose root disk controller is `scsi`. Off by
//! default.

use std::io;

use super::{Scheme, is_on_bus};
use crate::device::attributes::Attributes;
use crate::identity::Serial;
use crate::procfs::unless_gone;

pub(super) struct Scsi;

impl Scheme for Scsi {
    fn name(&self) -> &'static str {
        "scsi"
    }

    fn accepts(&self, _name: &str, disk: &Attributes) -> io::Result<bool> {
        // udev makes the link below from vendor and model; disks of other makers have other serial formats.
        let says = |name: &str, what: &str| -> io::Result<bool> {
            Ok(unless_gone(disk.text(name))?.is_some_and(|text| text.trim_end() == what))
        };
        Ok(is_on_bus(disk, "scsi")? && says("device/vendor", "QEMU")? && says("device/model", "QEMU HARDDISK")?)
    }

    /// The kernel keeps the page from when it found the disk; an exchanged disk is another device with another
    /// diskseq.
    fn serial(&self, disk: &Attributes) -> io::Result<Option<String>> {
        match disk.bytes("device/vpd_pg80") {
            Ok(page) => Ok(unit_serial(&page).filter(|serial| !serial.is_empty())),
            // A disk may lack the page; QEMU's disks have none if they have no serial.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn link_name(&self, serial: Serial) -> String {
        format!("scsi-0QEMU_QEMU_HARDDISK_{serial}")
    }
}

/// Parses the text of a "unit serial number" page (SPC-4, 7.8.15): four bytes of head, the last two of which are the
/// length.
fn unit_serial(page: &[u8]) -> Option<String> {
    let (head, text) = page.split_first_chunk::<4>()?;
    let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
    let text = text.get(..length).filter(|_| head[1] == 0x80)?;
    Some(String::from_utf8_lossy(text).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_page_of_a_qemu_disk_gives_its_serial() {
        // Recorded in a guest.
        assert_eq!(unit_serial(b"\0\x80\0\x14a1b2c3d4e5f6a7b8c9d0").as_deref(), Some("a1b2c3d4e5f6a7b8c9d0"));
        assert_eq!(unit_serial(b"\0\x80\0\0").as_deref(), Some(""));
    }

    #[test]
    fn another_page_or_a_truncated_page_gives_no_serial() {
        for page in [&b""[..], b"\0\x80\0", b"\0\x83\0\x01a", b"\0\x80\0\x14a1b2"] {
            assert_eq!(unit_serial(page), None, "{page:?}");
        }
    }

    proptest! {
        #[test]
        fn no_page_makes_the_parser_panic(page in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = unit_serial(&page);
        }
    }
}
