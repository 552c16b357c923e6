//! virtio-blk: what CloudStack gives a KVM guest by default.

use std::fs;
use std::io;
use std::path::Path;

use super::Scheme;
use crate::device::attribute;
use crate::identity::Serial;

pub(super) struct Virtio;

impl Scheme for Virtio {
    fn name(&self) -> &'static str {
        "virtio"
    }

    fn accepts(&self, disk: &Path) -> bool {
        fs::read_link(disk.join("device/subsystem")).is_ok_and(|bus| bus.ends_with("virtio"))
    }

    fn serial(&self, disk: &Path) -> io::Result<Option<String>> {
        // No newline when the serial fills all 20 bytes, an empty file when there is none.
        let text = attribute::text(&disk.join("serial"))?;
        Ok(Some(text.trim_end_matches('\n').to_owned()).filter(|serial| !serial.is_empty()))
    }

    fn link_name(&self, serial: Serial) -> String {
        format!("virtio-{serial}")
    }
}
