//! virtio-blk, which CloudStack gives a KVM guest by default.

use std::io;

use super::{Scheme, is_on_bus};
use crate::device::attributes::Attributes;
use crate::identity::Serial;

pub(super) struct Virtio;

impl Scheme for Virtio {
    fn name(&self) -> &'static str {
        "virtio"
    }

    fn accepts(&self, _name: &str, disk: &Attributes) -> io::Result<bool> {
        is_on_bus(disk, "virtio")
    }

    fn serial(&self, disk: &Attributes) -> io::Result<Option<String>> {
        // The attribute has no newline if the serial fills all 20 bytes, and is empty if there is no serial.
        let text = disk.asked_text("serial")?;
        Ok(Some(text.trim_end_matches('\n').to_owned()).filter(|serial| !serial.is_empty()))
    }

    fn link_name(&self, serial: Serial) -> String {
        format!("virtio-{serial}")
    }
}
