//! The nbd-server backend.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::check::{self, ServerUser};
use super::mode::Mode;
use super::sections::Sections;
use crate::export::backend::{Backend, Check, Contents, Which};
use crate::export::links::Links;
use crate::folder::Folder;
use crate::identity::VolumeId;

/// nbd-server in one of its modes.
pub struct NbdServerBackend {
    /// The published links.
    pub links: Links,
    /// The sections, which name the exports to the server and lead to the links.
    pub sections: Sections,
    /// The server's main configuration file.
    pub main_file: PathBuf,
    /// The user that the server runs as.
    pub reader: ServerUser,
    /// How the server learns of changes.
    pub mode: Mode,
    /// The address at which the server should listen.
    pub listen: IpAddr,
}

impl Backend for NbdServerBackend {
    fn prepares(&self) -> bool {
        true
    }

    fn prepare(&self, volume: VolumeId) -> io::Result<bool> {
        self.sections.write(volume)
    }

    fn publish(&self, volume: VolumeId, link: &str) -> io::Result<()> {
        self.sections.is_there(volume)?;
        self.links.make(volume, link)
    }

    fn revoke(&self, volume: VolumeId) -> io::Result<()> {
        self.links.remove(volume)
    }

    fn forget(&self, volume: VolumeId) -> io::Result<()> {
        self.links.remove(volume)?;
        self.sections.remove(volume)
    }

    fn look(&self, volume: VolumeId) -> io::Result<Option<String>> {
        let target = self.links.look(volume)?;
        // Without attachd's section the server does not offer the name, or offers it by somebody else's section.
        Ok(target.map(|target| if self.sections.is_there(volume).is_ok() { target } else { String::new() }))
    }

    fn list(&self, known: &BTreeSet<VolumeId>) -> io::Result<Contents> {
        let sections = self.sections.list(known)?;
        let mut contents = self.links.list(known)?;
        let without_section = contents.links.iter_mut().filter(|(volume, _)| !sections.prepared.contains(volume));
        without_section.for_each(|(_, target)| target.clear());
        contents.prepared = sections.prepared;
        contents.strays.extend(sections.strays);
        contents.more_strays |= sections.more_strays;
        contents.foreign.extend(sections.foreign);
        contents.unusable = contents.unusable.or(sections.unusable);
        Ok(contents)
    }

    fn folders(&self) -> Vec<(Which, &Folder)> {
        vec![(Which::Links, self.links.folder()), (Which::Sections, self.sections.folder())]
    }

    fn must_be_told(&self) -> bool {
        self.mode == Mode::Signal
    }

    fn check(&self) -> Check {
        let main = match check::main_file(&self.main_file, self.reader) {
            Ok(main) => main,
            Err(refusal) => return refused(refusal.to_string()),
        };
        if main.includedir.as_ref().is_none_or(|dir| Path::new(dir) != self.sections.folder().path()) {
            return refused(format!(
                "{} does not include {}: set includedir there, or [export] folder in attachd's configuration",
                self.main_file.display(),
                self.sections.folder().path().display()
            ));
        }
        let folder = match check::folder(self.sections.folder().path(), self.reader) {
            Ok(folder) => folder,
            Err(refusal) => return refused(refusal.to_string()),
        };
        let mut remarks = Vec::new();
        // In socket mode the server has no listening address of its own.
        if self.mode == Mode::Signal && self.listen.is_loopback() && !main.is_local() {
            let file = self.main_file.display();
            remarks.push(format!("{file}: other hosts reach the server: say listenaddr = {}", self.listen));
        }
        for (name, files) in folder.duplicate_names() {
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
        Check { refused: None, remarks }
    }
}

fn refused(why: String) -> Check {
    Check { refused: Some(why), remarks: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};
    use std::fs;

    const LINK: &str = "/dev/disk/by-id/virtio-b3bb93101b594f6297e8";

    fn server() -> (tempfile::TempDir, NbdServerBackend, VolumeId) {
        let dir = tempfile::tempdir().unwrap();
        let (exports, folder) = (dir.path().join("exports"), dir.path().join("sections"));
        for folder in [&exports, &folder] {
            fs::create_dir(folder).unwrap();
        }
        let links = Links::new(exports);
        let me = ServerUser { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
        let server = NbdServerBackend {
            sections: Sections::new(folder, links.clone()),
            links,
            main_file: dir.path().join("main"),
            reader: me,
            mode: Mode::Signal,
            listen: IpAddr::from([127, 0, 0, 1]),
        };
        (dir, server, "b3bb9310-1b59-4f62-97e8-cefffdfe3804".parse().unwrap())
    }

    fn contents(link: Option<&str>, prepared: bool, volume: VolumeId) -> Contents {
        let links = link.into_iter().map(|link| (volume, link.to_owned())).collect::<BTreeMap<_, _>>();
        let prepared = prepared.then_some(volume).into_iter().collect::<BTreeSet<_>>();
        Contents { links, prepared, ..Contents::default() }
    }

    fn list(server: &NbdServerBackend, volume: VolumeId) -> Contents {
        server.list(&BTreeSet::from([volume])).unwrap()
    }

    #[test]
    fn each_step_done_twice_is_the_same_as_once() {
        let (_dir, server, volume) = server();
        let is = |link, prepared| assert_eq!(list(&server, volume), contents(link, prepared, volume));
        assert!(server.prepare(volume).unwrap());
        assert!(!server.prepare(volume).unwrap(), "the server need not be told again");
        is(None, true);
        for _ in 0..2 {
            server.publish(volume, LINK).unwrap();
            is(Some(LINK), true);
        }
        for _ in 0..2 {
            server.revoke(volume).unwrap();
            is(None, true);
        }
        server.publish(volume, LINK).unwrap();
        for _ in 0..2 {
            server.forget(volume).unwrap();
            is(None, false);
        }
        assert!(server.publish(volume, LINK).is_err(), "never prepared");
    }

    /// The server may still know the old section, or may know another section of that name.
    #[test]
    fn a_link_without_our_section_is_listed_without_a_path_and_no_link_is_made_beside_a_foreign_section() {
        let (_dir, server, volume) = server();
        server.prepare(volume).unwrap();
        server.publish(volume, LINK).unwrap();
        let section = server.sections.folder().path().join(volume.export_name() + ".conf");
        fs::remove_file(&section).unwrap();
        assert_eq!(list(&server, volume), contents(Some(""), false, volume));
        assert_eq!(server.look(volume).unwrap(), Some(String::new()));
        server.revoke(volume).unwrap();
        fs::write(&section, format!("[{}]\nexportname = /dev/null\n", volume.export_name())).unwrap();
        assert_eq!(server.publish(volume, LINK).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(list(&server, volume).links.is_empty());
    }

    #[test]
    fn a_main_file_that_lets_other_hosts_in_without_listenaddr_gets_a_remark() {
        let (_dir, server, _) = server();
        let remarks = |listenaddr: &str| {
            let folder = server.sections.folder().path().display();
            fs::write(&server.main_file, format!("[generic]\nincludedir = {folder}\n{listenaddr}\n")).unwrap();
            server.check()
        };
        for open in ["", "listenaddr = 0.0.0.0", "listenaddr = 127.0.0.1, 10.0.0.1"] {
            assert!(remarks(open).remarks[0].contains("listenaddr = 127.0.0.1"), "{open}");
        }
        for local in ["listenaddr = 127.0.0.1", "listenaddr = ::1, localhost"] {
            assert_eq!(remarks(local), Check::default(), "{local}");
        }
    }
}
