//! The folder of export files: for each volume a section, which the server reads once and never forgets, and a list of
//! the clients it lets in, which the server reads at every connection.
//!
//! ```text
//!   prepare   nobody.clients written, then the section   (the server is told; nobody gets in yet)
//!   admit     the clients' file filled                   (from here on the export is served)
//!   deny      the clients' file emptied                  (from here on it is not, whatever the server remembers)
//!   revoke    denied, then the section removed           (a server that starts later does not know it)
//! ```
//!
//! The order is what keeps it safe: the server lets **everybody** in when the clients' file is missing, so it is there
//! before the section and stays when the section is gone. It is emptied in place, which takes no space on a full disk; it
//! is filled by a rename, because half a line (`127.0.0.1/3`) would let more in than meant.
//!
//! Only `admit` opens the door. So `prepare`, and the signal, need no disk: they can be done when the intent comes, and
//! what is left to do when the disk is proven is one rename.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::check;
use super::section::{self, Section};
use crate::effect;
use crate::identity::VolumeId;

/// Clients on this host: the tunnel's end.
pub const LOOPBACK: &str = "127.0.0.0/8\n::1\n";
/// All clients, for a server that asks them for certificates.
pub const EVERYBODY: &str = "0.0.0.0/0\n::/0\n";

/// What the names of clients' files end in: not in `.conf`, so the server does not take them for sections.
const CLIENTS: &str = ".clients";

/// The folder, and who is let in.
#[derive(Debug, Clone)]
pub struct Files {
    folder: PathBuf,
    clients: &'static str,
}

/// What is in the folder.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Our sections.
    pub exports: BTreeMap<VolumeId, Export>,
    /// Volumes of which only the clients' file is left: a server may still know their sections.
    pub revoked: BTreeSet<VolumeId>,
    /// Other files the server reads, those apart that it passes over (folders, links).
    pub foreign: Vec<String>,
}

/// One of our sections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// The by-id path it names.
    pub link: String,
    /// Who gets in.
    pub door: Door,
}

/// What a clients' file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// Nobody gets in.
    Shut,
    /// Whom we let in.
    Open,
    /// Somebody has written something else into it.
    Changed,
    /// It is missing or cannot be read: everybody gets in.
    Missing,
}

impl Files {
    /// The folder at this path, which must exist, and the clients to let in ([`LOOPBACK`], [`EVERYBODY`]).
    pub fn new(folder: PathBuf, clients: &'static str) -> Self {
        Self { folder, clients }
    }

    /// Writes the volume's section, if it is not there as it must be. Nobody is let in by that who was not before.
    /// Returns whether the server must be told. Durable.
    ///
    /// A file of this name that attachd has not written is left alone: an error of the kind `AlreadyExists`.
    pub fn prepare(&self, volume: VolumeId, link: &str) -> io::Result<bool> {
        let place = self.folder.join(section::file_name(volume));
        let section = Section { volume, link: link.to_owned(), authfile: self.clients_file(volume) };
        let text = section.render().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let old = match fs::read(&place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            result => Some(result?),
        };
        // Also when the section is there: somebody may have taken the clients' file away.
        if !fs::exists(&section.authfile)? {
            effect::at("clients.make", || self.replace(&section.authfile, ""))?;
        }
        match old {
            Some(old) if old == text.as_bytes() => return Ok(false),
            Some(old) if Section::parse(&old).is_none() => {
                let why =
                    format!("{} was not written by attachd: move it away, restart the NBD server", place.display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
            }
            // A server that knows an old one keeps it, and whoever was let in to that is not let in to this: nobody may get
            // in until it is seen. Also when there is none any more, for attachd never takes one away with its door open.
            _ if self.door(volume) != Door::Shut => self.deny(volume)?,
            _ => {}
        }
        effect::at("section.make", || self.replace(&place, &text))?;
        Ok(true)
    }

    /// Lets clients in: from now on the export is served. To be done when the disk is proven, and not before. Durable.
    pub fn admit(&self, volume: VolumeId) -> io::Result<()> {
        effect::at("clients.admit", || {
            if self.door(volume) == Door::Open {
                Ok(())
            } else {
                // It may be open when this fails, and nobody would take that for published: shut it again.
                let made = self.replace(&self.clients_file(volume), self.clients);
                made.or_else(|error| self.deny(volume).and(Err(error)))
            }
        })
    }

    /// Lets no new client in, at once and whatever the server remembers. Clients that are connected stay. Durable.
    pub fn deny(&self, volume: VolumeId) -> io::Result<()> {
        effect::at("clients.deny", || {
            let place = self.clients_file(volume);
            match OpenOptions::new().write(true).truncate(true).open(&place) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.replace(&place, ""),
                file => file?.sync_all(),
            }
        })
    }

    /// Lets no new client in and takes the section away. Doing it again changes nothing. Durable.
    ///
    /// The clients' file stays, empty: a server that runs still knows the section, and would let everybody in.
    pub fn revoke(&self, volume: VolumeId) -> io::Result<()> {
        self.deny(volume)?;
        let place = self.folder.join(section::file_name(volume));
        // What somebody else has written under this name is theirs.
        if fs::read(&place).is_ok_and(|bytes| Section::parse(&bytes).is_none()) {
            return Ok(());
        }
        effect::at("section.remove", || self.remove(&place))
    }

    /// Takes away the clients' file of a revoked volume. Only when no server runs that has read the section: it was
    /// started after the section was removed. Durable.
    pub fn forget(&self, volume: VolumeId) -> io::Result<()> {
        if fs::exists(self.folder.join(section::file_name(volume)))? {
            return Err(io::Error::other(format!("{volume} still has a section: its clients' file must stay")));
        }
        effect::at("clients.remove", || self.remove(&self.clients_file(volume)))
    }

    /// Who gets in.
    pub fn door(&self, volume: VolumeId) -> Door {
        match fs::read(self.clients_file(volume)) {
            Ok(clients) if clients.is_empty() => Door::Shut,
            Ok(clients) if clients == self.clients.as_bytes() => Door::Open,
            Ok(_) => Door::Changed,
            Err(_) => Door::Missing,
        }
    }

    /// Lists the folder.
    pub fn list(&self) -> io::Result<Contents> {
        let mut contents = Contents::default();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(volume) = name.strip_suffix(CLIENTS).and_then(VolumeId::from_export_name) {
                contents.revoked.insert(volume);
                continue;
            }
            if !check::is_read(&entry) {
                continue;
            }
            let ours = fs::read(entry.path()).ok().and_then(|bytes| Section::parse(&bytes));
            match ours.filter(|section| section::volume_of(&name) == Some(section.volume)) {
                Some(Section { volume, link, authfile }) => {
                    // A section that names another file is not under our control.
                    let door = if authfile == self.clients_file(volume) { self.door(volume) } else { Door::Changed };
                    contents.exports.insert(volume, Export { link, door });
                }
                None => contents.foreign.push(name),
            }
        }
        contents.revoked.retain(|volume| !contents.exports.contains_key(volume));
        contents.foreign.sort_unstable();
        Ok(contents)
    }

    fn clients_file(&self, volume: VolumeId) -> PathBuf {
        self.folder.join(volume.export_name() + CLIENTS)
    }

    /// Writes a file whole: under a name the server does not read, synced, renamed over, the folder synced. Readable by
    /// the server, which is another user, whatever the mask is.
    fn replace(&self, place: &Path, text: &str) -> io::Result<()> {
        let name = place.file_name().unwrap_or_default().to_string_lossy();
        let staged = place.with_file_name(format!(".{name}.tmp"));
        let created = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&staged);
        let written = created.and_then(|mut file| {
            file.set_permissions(Permissions::from_mode(0o644))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&staged, place)
        });
        if written.is_err() {
            let _ = fs::remove_file(&staged);
        }
        written?;
        self.sync()
    }

    fn remove(&self, place: &Path) -> io::Result<()> {
        match fs::remove_file(place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.sync(),
        }
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: &str = "/dev/disk/by-id/virtio-b3bb93101b594f6297e8";

    fn files() -> (tempfile::TempDir, Files, VolumeId) {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().to_owned(), LOOPBACK);
        (dir, files, "b3bb9310-1b59-4f62-97e8-cefffdfe3804".parse().unwrap())
    }

    fn names(files: &Files) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<_> = fs::read_dir(&files.folder).unwrap().map(name).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn each_step_done_twice_is_the_same_as_once() {
        let (_dir, files, volume) = files();
        let export = |door| Export { link: LINK.into(), door };
        assert!(files.prepare(volume, LINK).unwrap());
        assert!(!files.prepare(volume, LINK).unwrap(), "the server need not be told again");
        assert_eq!(files.list().unwrap().exports[&volume], export(Door::Shut));
        for _ in 0..2 {
            files.admit(volume).unwrap();
            assert_eq!(files.list().unwrap().exports[&volume], export(Door::Open));
        }
        assert!(!files.prepare(volume, LINK).unwrap());
        assert_eq!(files.door(volume), Door::Open, "preparing again shuts nobody out");
        for _ in 0..2 {
            files.deny(volume).unwrap();
            assert_eq!(files.list().unwrap().exports[&volume], export(Door::Shut));
        }
        files.admit(volume).unwrap();
        for _ in 0..2 {
            files.revoke(volume).unwrap();
            let contents = files.list().unwrap();
            assert_eq!((contents.exports.len(), contents.revoked.contains(&volume)), (0, true));
            assert_eq!(files.door(volume), Door::Shut);
        }
        for _ in 0..2 {
            files.forget(volume).unwrap();
            assert_eq!(files.list().unwrap(), Contents::default());
        }
        assert!(names(&files).is_empty());
    }

    /// The trap: a missing clients' file lets everybody in.
    #[test]
    fn there_is_no_moment_with_a_section_and_without_its_clients_file() {
        let (_dir, files, volume) = files();
        let clients = files.clients_file(volume);
        // What cannot be made comes first, so nothing else was done.
        let in_the_way = clients.with_file_name(format!(".{}.clients.tmp", volume.export_name()));
        fs::create_dir(&in_the_way).unwrap();
        assert!(files.prepare(volume, LINK).is_err());
        assert!(!fs::exists(files.folder.join(section::file_name(volume))).unwrap());
        fs::remove_dir(&in_the_way).unwrap();

        files.prepare(volume, LINK).unwrap();
        files.admit(volume).unwrap();
        assert!(files.forget(volume).is_err(), "it has a section");
        fs::remove_file(&clients).unwrap();
        assert_eq!(files.list().unwrap().exports[&volume].door, Door::Missing);
        assert!(!files.prepare(volume, LINK).unwrap());
        assert_eq!(files.door(volume), Door::Shut, "made again, for nobody");
        fs::remove_file(&clients).unwrap();
        files.revoke(volume).unwrap();
        assert_eq!(files.door(volume), Door::Shut, "the server may still know the section");
    }

    #[test]
    fn what_is_written_can_be_read_by_the_server_which_is_another_user() {
        let (_dir, files, volume) = files();
        files.prepare(volume, LINK).unwrap();
        files.admit(volume).unwrap();
        for name in names(&files) {
            let mode = fs::metadata(files.folder.join(&name)).unwrap().permissions().mode() & 0o7777;
            assert_eq!(mode, 0o644, "{name}");
        }
    }

    #[test]
    fn a_section_that_must_change_admits_nobody_until_it_is_seen() {
        let (_dir, files, volume) = files();
        files.prepare(volume, "/dev/disk/by-id/scsi-x").unwrap();
        files.admit(volume).unwrap();
        assert!(files.prepare(volume, LINK).unwrap());
        assert_eq!(files.list().unwrap().exports[&volume], Export { link: LINK.into(), door: Door::Shut });
    }

    /// Who has removed it by hand has left the door open.
    #[test]
    fn a_section_that_somebody_took_away_comes_back_with_its_door_shut() {
        let (_dir, files, volume) = files();
        files.prepare(volume, LINK).unwrap();
        files.admit(volume).unwrap();
        fs::remove_file(files.folder.join(section::file_name(volume))).unwrap();
        assert!(files.prepare(volume, LINK).unwrap());
        assert_eq!(files.door(volume), Door::Shut);
    }

    #[test]
    fn what_others_wrote_is_listed_and_never_touched_not_even_under_our_name() {
        let (_dir, files, volume) = files();
        let place = files.folder.join(section::file_name(volume));
        let predecessors = format!("[{}]\nexportname = {LINK}\n", volume.export_name());
        fs::write(&place, &predecessors).unwrap();
        fs::write(files.folder.join(".hidden.conf"), "x").unwrap();
        fs::write(files.folder.join("notes.txt"), "x").unwrap();
        fs::create_dir(files.folder.join("folder.conf")).unwrap();
        assert_eq!(files.prepare(volume, LINK).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        files.revoke(volume).unwrap();
        assert_eq!(fs::read_to_string(&place).unwrap(), predecessors);
        let contents = files.list().unwrap();
        assert_eq!(contents.foreign, [".hidden.conf".to_owned(), section::file_name(volume)]);
        // Ours, but under another's name.
        let ours = Section { volume, link: LINK.into(), authfile: files.clients_file(volume) }.render().unwrap();
        fs::write(files.folder.join("copy.conf"), ours).unwrap();
        assert!(files.list().unwrap().foreign.contains(&"copy.conf".to_owned()));
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file_and_nothing_beside_it() {
        let (_dir, files, volume) = files();
        files.prepare(volume, LINK).unwrap();
        let before = names(&files);
        // A link to where no space is ever left.
        let staged = files.folder.join(format!(".{}.clients.tmp", volume.export_name()));
        std::os::unix::fs::symlink("/dev/full", &staged).unwrap();
        assert!(files.admit(volume).is_err());
        assert_eq!((files.door(volume), names(&files)), (Door::Shut, before));
    }

    #[test]
    fn what_a_crash_leaves_is_no_section_and_does_not_stop_the_next_write() {
        let (_dir, files, volume) = files();
        fs::write(files.folder.join(format!(".{}.tmp", section::file_name(volume))), "half").unwrap();
        assert_eq!(files.list().unwrap(), Contents::default());
        files.prepare(volume, LINK).unwrap();
        assert_eq!(files.list().unwrap().exports.len(), 1);
    }
}
