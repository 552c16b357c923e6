//! nbd-server, as the engine sees it.

use std::io;
use std::path::{Path, PathBuf};

use super::check::{self, Reader};
use super::files::{Door, Files};
use super::way::Mode;
use crate::export::backend::{Backend, Check, Contents};
use crate::identity::VolumeId;

/// nbd-server in one of its ways.
pub struct NbdServer {
    /// Its export files.
    pub files: Files,
    /// Their folder.
    pub folder: PathBuf,
    /// Its main file.
    pub main_file: PathBuf,
    /// Whom it runs as.
    pub reader: Reader,
    /// How it learns of changes.
    pub mode: Mode,
}

impl Backend for NbdServer {
    fn prepare(&self, volume: VolumeId, link: &str) -> io::Result<bool> {
        self.files.prepare(volume, link)
    }

    fn publish(&self, volume: VolumeId, link: &str) -> io::Result<bool> {
        let unknown = self.files.prepare(volume, link)?;
        self.files.admit(volume)?;
        Ok(unknown)
    }

    fn revoke(&self, volume: VolumeId) -> io::Result<()> {
        self.files.deny(volume)
    }

    fn forget(&self, volume: VolumeId) -> io::Result<()> {
        self.files.revoke(volume)
    }

    fn list(&self) -> io::Result<Contents> {
        let listed = self.files.list()?;
        let prepared = listed.exports.keys().copied().collect();
        let open = listed.exports.into_iter().filter(|(_, export)| export.door != Door::Shut);
        // Somebody may get in, but not by our leave.
        let links = open.map(|(volume, export)| match export.door {
            Door::Open => (volume, export.link),
            _ => (volume, String::new()),
        });
        // A server that has read a section serves it on, also when somebody has taken the section away.
        let remembered = listed.revoked.into_iter().filter(|volume| self.files.door(*volume) != Door::Shut);
        let links = links.chain(remembered.map(|volume| (volume, String::new())));
        Ok(Contents { links: links.collect(), prepared, foreign: listed.foreign })
    }

    fn must_be_told(&self) -> bool {
        self.mode == Mode::Signal
    }

    fn check(&self) -> Check {
        let main = match check::main_file(&self.main_file, self.reader) {
            Ok(main) => main,
            Err(refusal) => return refused(refusal.to_string()),
        };
        if main.includedir.as_ref().is_none_or(|dir| Path::new(dir) != self.folder) {
            return refused(format!(
                "{} does not include {}: set includedir there, or [export] folder in attachd's configuration",
                self.main_file.display(),
                self.folder.display()
            ));
        }
        let folder = match check::folder(&self.folder, self.reader) {
            Ok(folder) => folder,
            Err(refusal) => return refused(refusal.to_string()),
        };
        let mut remarks = Vec::new();
        for (name, files) in folder.twice() {
            let files: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
            remarks.push(format!("[{name}] is in {}: which of them is served nobody can say", files.join(" and ")));
        }
        for (file, sections) in &folder.files {
            for section in sections {
                let said = section
                    .remarks
                    .iter()
                    .map(|remark| format!("{}, line {}, [{}]: {remark}", file.display(), section.line, section.name));
                remarks.extend(said);
            }
        }
        let open_to_all = |door| matches!(door, Door::Missing | Door::Changed);
        let exports = self.files.list().unwrap_or_default().exports.into_iter();
        for (volume, _) in exports.filter(|(_, export)| open_to_all(export.door)) {
            let export = volume.export_name();
            remarks.push(format!(
                "the list of clients of {export} is missing or changed, and others than meant are let in: run `attachctl resync`"
            ));
        }
        Check { refused: None, remarks }
    }
}

fn refused(why: String) -> Check {
    Check { refused: Some(why), remarks: Vec::new() }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::super::{files, section};
    use super::*;

    #[test]
    fn what_a_running_server_may_let_somebody_in_to_is_listed_also_without_its_section() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().to_owned();
        let files = Files::new(folder.clone(), files::LOOPBACK);
        let reader = Reader { uid: 0, gid: 0 };
        let server =
            NbdServer { files, main_file: folder.join("main"), folder: folder.clone(), reader, mode: Mode::Signal };
        let volume: VolumeId = "b3bb9310-1b59-4f62-97e8-cefffdfe3804".parse().unwrap();
        server.publish(volume, "/dev/disk/by-id/virtio-b3bb93101b594f6297e8").unwrap();
        std::fs::remove_file(folder.join(section::file_name(volume))).unwrap();
        let listed = server.list().unwrap();
        assert_eq!((listed.links, listed.prepared), (BTreeMap::from([(volume, String::new())]), BTreeSet::new()));
        server.revoke(volume).unwrap();
        assert_eq!(server.list().unwrap(), Contents::default());
    }
}
