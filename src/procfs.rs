//! Reading the kernel's tables with as few system calls as there can be, and what it means when that fails.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::io::Errno;

/// A mount table or a table of connections of an ordinary host fits.
const TABLE: usize = 64 * 1024;

/// The bytes of one file of procfs, which tells no size beforehand. Names in it are whatever somebody chose: no text.
pub(crate) fn table(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(TABLE);
    // `take` hides that this is a file: std would ask for its size (0) and then read in tiny pieces, and the kernel may
    // walk the whole table for each.
    File::open(path)?.take(u64::MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The same where a kernel without that feature has no such file: then it is empty, and at no other time.
pub(crate) fn table_if_any(path: &Path) -> io::Result<Vec<u8>> {
    match table(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        result => result,
    }
}

/// What was read; `None` when it is gone: a process or its descriptor, a device or its folder in sysfs. Any other error
/// stays one: what could not be read may be there.
pub(crate) fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    const GONE: [Errno; 4] = [Errno::NOENT, Errno::SRCH, Errno::NODEV, Errno::NXIO];
    match result {
        Err(error) if Errno::from_io_error(&error).is_some_and(|errno| GONE.contains(&errno)) => Ok(None),
        result => result.map(Some),
    }
}
