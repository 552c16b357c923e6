//! Reading small files of sysfs with as few system calls as there can be: these lie on the way of every event.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// sysfs gives an attribute whole in one read, and never more than a page.
const PAGE: usize = 4096;

/// The text of one sysfs attribute.
pub(super) fn text(path: &Path) -> io::Result<String> {
    String::from_utf8(bytes(path)?).map_err(io::Error::other)
}

/// The bytes of one sysfs attribute.
pub(super) fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut page = [0; PAGE];
    let length = File::open(path)?.read(&mut page)?;
    Ok(page[..length].to_vec())
}

/// The number in one sysfs attribute; `None` when there is no such file or no number in it.
pub(super) fn number(path: &Path) -> Option<u64> {
    text(path).ok()?.trim().parse().ok()
}
