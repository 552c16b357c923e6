//! Examines the file at a path: its kind, owner, mode and device, and whether these are as they must be. A symlink at
//! the path itself is not followed. The checks are pure; [`Inode`] holds what was read.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};

/// The user id of root.
pub const ROOT: u32 = 0;

/// The mode bits that let other users write.
const OTHERS_WRITE: u32 = 0o022;

/// The permissions of users who are neither the owner nor in the group.
const EVERYBODY: u32 = 0o007;

/// The kind of a file; symlinks are not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Folder,
    /// A regular file.
    File,
    /// A symbolic link.
    Link,
    /// A Unix socket.
    Socket,
    /// A device or a fifo.
    Special,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Folder => "a folder",
            Self::File => "a file",
            Self::Link => "a link",
            Self::Socket => "a socket",
            Self::Special => "a device or a fifo",
        })
    }
}

/// What was read about a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    /// The kind of file.
    pub kind: Kind,
    /// The owner's user id.
    pub owner: u32,
    /// The permissions.
    pub mode: u32,
    /// The file system's device number.
    pub device: u64,
    /// The inode number; with the device number it identifies the file.
    pub inode: u64,
    /// The number of hard links.
    pub names: u64,
}

/// Why a file is not attachd's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotOurs {
    /// It has another kind.
    #[error("it is {is}, not {wanted}")]
    Kind {
        /// The kind it has.
        is: Kind,
        /// The kind it must have.
        wanted: Kind,
    },
    /// It has another owner.
    #[error("it belongs to the user {is}, not to {wanted}")]
    Owner {
        /// The owner it has.
        is: u32,
        /// The owner it must have.
        wanted: u32,
    },
    /// Other users may write it.
    #[error("others may write it (mode {:04o}): chmod go-w", .0)]
    OpenToOthers(u32),
    /// It has several hard links.
    #[error("it has {0} names (hard links)")]
    SeveralNames(u64),
    /// Another file system is mounted there.
    #[error(
        "it is on another file system than before: something is mounted over it, or is not any more; restart attachd if that is right"
    )]
    OtherDevice,
}

impl Inode {
    /// Reads the file at a path; the error has the kind `NotFound` if there is none.
    pub fn at(path: &Path) -> io::Result<Self> {
        Self::below(CWD, path)
    }

    /// Reads a name in an open folder.
    pub fn below(folder: impl AsFd, name: impl rustix::path::Arg) -> io::Result<Self> {
        Ok(Self::from(rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?))
    }

    /// Reads an open file.
    pub fn open(descriptor: impl AsFd) -> io::Result<Self> {
        Ok(Self::from(rustix::fs::fstat(descriptor)?))
    }

    /// Returns what identifies the file as long as it exists.
    pub fn identity(&self) -> (u64, u64) {
        (self.device, self.inode)
    }

    /// Checks the kind.
    pub fn is(&self, wanted: Kind) -> Result<(), NotOurs> {
        if self.kind == wanted { Ok(()) } else { Err(NotOurs::Kind { is: self.kind, wanted }) }
    }

    /// Checks the owner. `None`: the right owner is unknown, and every owner passes.
    pub fn belongs_to(&self, owner: Option<u32>) -> Result<(), NotOurs> {
        match owner {
            Some(wanted) if wanted != self.owner => Err(NotOurs::Owner { is: self.owner, wanted }),
            _ => Ok(()),
        }
    }

    /// Checks that it is a folder of this user that nobody else can change.
    pub fn is_folder_of(&self, owner: Option<u32>) -> Result<(), NotOurs> {
        self.is(Kind::Folder)?;
        self.belongs_to(owner)?;
        if self.mode & OTHERS_WRITE == 0 { Ok(()) } else { Err(NotOurs::OpenToOthers(self.mode)) }
    }

    /// Checks that it is a regular file of this user without a second hard link, so that a write changes no other
    /// path.
    pub fn is_file_of(&self, owner: Option<u32>) -> Result<(), NotOurs> {
        self.is(Kind::File)?;
        self.belongs_to(owner)?;
        if self.names <= 1 { Ok(()) } else { Err(NotOurs::SeveralNames(self.names)) }
    }
}

impl From<Stat> for Inode {
    fn from(stat: Stat) -> Self {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Folder,
            FileType::RegularFile => Kind::File,
            FileType::Symlink => Kind::Link,
            FileType::Socket => Kind::Socket,
            _ => Kind::Special,
        };
        Self {
            kind,
            owner: stat.st_uid,
            mode: stat.st_mode & 0o7777,
            device: stat.st_dev,
            inode: stat.st_ino,
            names: stat.st_nlink,
        }
    }
}

/// Reads a small file that other users may have made. It must be a regular file, not a symlink, of at most `limit`
/// bytes; anything else is an error. May block, as every file system may.
pub fn small_file(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    read_small(path, OFlags::NOFOLLOW, limit).map(|(bytes, _)| bytes)
}

/// As [`small_file`], but follows symlinks: for a file of root, who may keep it elsewhere.
pub fn small_file_of_root(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    read_small(path, OFlags::empty(), limit).map(|(bytes, _)| bytes)
}

/// As [`small_file`], and returns the owner too.
pub fn small_file_and_owner(path: &Path, limit: u64) -> io::Result<(Vec<u8>, u32)> {
    read_small(path, OFlags::NOFOLLOW, limit)
}

/// Reads a file of root's with a secret, which not every user may read. Links are followed. An error names the file and
/// never repeats its content.
pub fn secret_file(path: &Path, limit: u64) -> Result<Vec<u8>, String> {
    let failed = |why: &dyn fmt::Display| format!("{}: {why}", path.display());
    let (bytes, found) = read_file(path, OFlags::empty(), limit).map_err(|error| failed(&error))?;
    let mode = found.mode;
    if mode & EVERYBODY != 0 {
        let right = mode & !EVERYBODY;
        return Err(failed(&format_args!(
            "every user may use it (mode {mode:04o}): `chmod {right:04o} {}`, and get a new secret if somebody has read it",
            path.display()
        )));
    }
    Ok(bytes)
}

/// Returns whether a process listens at a Unix socket. Never blocks.
pub fn somebody_listens(path: &Path) -> io::Result<bool> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        // The socket's queue is full, so a process has it open.
        Ok(()) | Err(rustix::io::Errno::AGAIN) => Ok(true),
        Err(rustix::io::Errno::CONNREFUSED) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn read_small(path: &Path, links: OFlags, limit: u64) -> io::Result<(Vec<u8>, u32)> {
    read_file(path, links, limit).map(|(bytes, found)| (bytes, found.owner))
}

fn read_file(path: &Path, links: OFlags, limit: u64) -> io::Result<(Vec<u8>, Inode)> {
    // Opening a fifo or a device could block or have an effect.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC | links;
    let file = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        Err(rustix::io::Errno::LOOP) => return Err(io::Error::other("it is a link")),
        file => file?,
    };
    let found = Inode::open(&file)?;
    found.is(Kind::File).map_err(io::Error::other)?;
    let mut bytes = Vec::new();
    File::from(file).take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("it is larger than {limit} bytes")));
    }
    Ok((bytes, found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn me() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    #[test]
    fn a_folder_is_ours_by_kind_owner_and_mode_and_a_link_to_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, link, file) = (dir.path().join("folder"), dir.path().join("link"), dir.path().join("file"));
        fs::create_dir(&folder).unwrap();
        symlink(&folder, &link).unwrap();
        fs::write(&file, "").unwrap();
        let judged = |path: &Path, owner| Inode::at(path).unwrap().is_folder_of(owner);
        assert_eq!(judged(&folder, Some(me())), Ok(()), "the control");
        assert_eq!(judged(&folder, None), Ok(()), "nobody knows whose it should be");
        assert_eq!(judged(&link, Some(me())), Err(NotOurs::Kind { is: Kind::Link, wanted: Kind::Folder }));
        assert_eq!(judged(&file, Some(me())), Err(NotOurs::Kind { is: Kind::File, wanted: Kind::Folder }));
        assert_eq!(judged(&folder, Some(me() + 1)), Err(NotOurs::Owner { is: me(), wanted: me() + 1 }));
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(judged(&folder, Some(me())), Err(NotOurs::OpenToOthers(0o777)));
    }

    #[test]
    fn a_file_with_a_second_hard_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let judged = || Inode::at(&file).unwrap().is_file_of(Some(me()));
        assert_eq!(judged(), Ok(()), "the control");
        fs::hard_link(&file, dir.path().join("second")).unwrap();
        assert_eq!(judged(), Err(NotOurs::SeveralNames(2)));
    }

    /// With each of these, `fs::read` would block for ever, follow a link, or fill the memory.
    #[test]
    fn only_a_small_regular_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("small"), "12\n").unwrap();
        fs::write(path("large"), [b'1'; 65]).unwrap();
        fs::File::create(path("huge")).unwrap().set_len(1 << 40).unwrap();
        symlink(path("small"), path("link")).unwrap();
        symlink("/dev/zero", path("device")).unwrap();
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(CWD, path("fifo"), FileType::Fifo, mode, 0).unwrap();
        assert_eq!(small_file(&path("small"), 64).unwrap(), b"12\n", "the control");
        for name in ["large", "huge", "link", "device", "fifo", ""] {
            assert!(small_file(&path(name), 64).is_err(), "{name}");
        }
        assert!(small_file_of_root(&path("link"), 64).is_ok());
        assert!(small_file_of_root(&path("device"), 64).unwrap_err().to_string().contains("a device"));
        assert_eq!(small_file(&path("none"), 64).unwrap_err().kind(), io::ErrorKind::NotFound);
        // Files of procfs report the size 0.
        assert!(small_file(Path::new("/proc/self/comm"), 64).is_ok());
    }
}
