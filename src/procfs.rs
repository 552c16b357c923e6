//! Reads tables of the kernel with few system calls, and tells absent files from unreadable ones.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::io::Errno;

/// The first buffer size; the table of mounts or connections of an ordinary host fits.
const TABLE: usize = 64 * 1024;

/// Reads a file of procfs, which reports no size. The result is bytes, because names in it can be any bytes.
pub(crate) fn table(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(TABLE);
    // `take` hides that this is a file. Otherwise std would ask for its size (0) and read small pieces, and the
    // kernel may walk the whole table for each piece.
    File::open(path)?.take(u64::MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// As [`table`], but a missing file counts as empty: a kernel without the feature has no such file.
pub(crate) fn table_if_any(path: &Path) -> io::Result<Vec<u8>> {
    match table(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        result => result,
    }
}

/// Returns `None` if the error means "gone": a process or its descriptor, a device or its folder in sysfs. Any other
/// error stays an error, because what could not be read may exist.
pub(crate) fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    const GONE: [Errno; 4] = [Errno::NOENT, Errno::SRCH, Errno::NODEV, Errno::NXIO];
    match result {
        Err(error) if Errno::from_io_error(&error).is_some_and(|errno| GONE.contains(&errno)) => Ok(None),
        result => result.map(Some),
    }
}
