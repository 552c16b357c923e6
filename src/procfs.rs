//! Reading the kernel's tables with as few system calls as there can be.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// A mount table or a table of connections of an ordinary host fits.
const TABLE: usize = 64 * 1024;

/// The text of one file of procfs, which tells no size beforehand.
pub(crate) fn table(path: &Path) -> io::Result<String> {
    let mut text = String::with_capacity(TABLE);
    // `take` hides that this is a file: std would ask for its size (0) and then read in tiny pieces, and the kernel may
    // walk the whole table for each.
    File::open(path)?.take(u64::MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// What was read of a process; `None` when the process, or its descriptor, has gone meanwhile.
pub(crate) fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => Ok(None),
        result => result.map(Some),
    }
}
