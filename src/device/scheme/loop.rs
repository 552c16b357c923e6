//! Loop devices whose backing file is named `<serial>.img`: real block devices for the demo and the tests. Off by
//! default.

use std::io;

use super::Scheme;
use crate::device::attributes::Attributes;
use crate::identity::Serial;

pub(super) struct Loop;

impl Scheme for Loop {
    fn name(&self) -> &'static str {
        "loop"
    }

    fn accepts(&self, name: &str, _disk: &Attributes) -> io::Result<bool> {
        Ok(name.strip_prefix("loop").is_some_and(|number| number.bytes().all(|b| b.is_ascii_digit())))
    }

    fn serial(&self, disk: &Attributes) -> io::Result<Option<String>> {
        let file = match disk.text("loop/backing_file") {
            Ok(text) => text,
            // Nothing is bound to the loop device.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let name = file.trim_end().rsplit('/').next().unwrap_or_default();
        Ok(name.strip_suffix(".img").map(str::to_owned))
    }

    fn link_name(&self, serial: Serial) -> String {
        format!("loop-{serial}")
    }
}
