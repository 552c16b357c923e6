//! The NBD server of the simulation, its clients, and the folders that it reads.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;

use super::host::{Disk, Host, NBD};
use crate::device::DevNum;
use crate::export::backend::{Contents, Which};
use crate::folder_watch::FolderChanges;
use crate::identity::{Serial, VolumeId};

/// A link in the folder of exports.
#[derive(Debug, Clone)]
pub(super) struct Export {
    pub(super) target: String,
    /// The number of this link among all that were ever made.
    pub(super) made: u64,
}

/// A successful handshake: for which link, in which life of the server, and what was served.
#[derive(Debug, Clone, Copy)]
pub(super) struct Proof {
    pub(super) made: u64,
    pub(super) life: u64,
    pub(super) diskseq: u64,
    pub(super) size: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) name: String,
    pub(super) volume: VolumeId,
    /// The disk that the client has open while it is connected.
    pub(super) devnum: DevNum,
    pub(super) diskseq: u64,
}

#[derive(Default)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Nbd {
    /// Whether the server needs sections, and must be notified of new ones.
    pub(super) is_told: bool,
    pub(super) exports: BTreeMap<VolumeId, Export>,
    pub(super) made: u64,
    pub(super) sections: BTreeSet<VolumeId>,
    /// The sections that the server has read.
    pub(super) known: BTreeSet<VolumeId>,
    /// Links that another program has touched, and of which the engine has not learnt since.
    pub(super) touched: BTreeSet<VolumeId>,
    /// Links that another program has made. They look like attachd's.
    pub(super) remade: BTreeSet<VolumeId>,
    /// Revocations that have failed since the last successful one.
    pub(super) stuck: BTreeSet<VolumeId>,
    /// Whether nothing can be made, removed or listed.
    pub(super) broken: bool,
    pub(super) up: bool,
    pub(super) silent: bool,
    /// The number of starts.
    pub(super) life: u64,
    /// Whether the watch has something to report.
    pub(super) changed: bool,
    /// The changes in the folders.
    pub(super) folders: FolderChanges,
    pub(super) clients: Vec<Client>,
    pub(super) proofs: BTreeMap<VolumeId, Vec<Proof>>,
    pub(super) came: u64,
}

impl Nbd {
    /// Returns whether the server answers a client now.
    pub(super) fn answers(&self) -> bool {
        self.up && !self.silent
    }

    /// Returns the disk that a client of this export gets now.
    pub(super) fn opens<'a>(&self, host: &'a Host, volume: VolumeId) -> Option<(DevNum, &'a Disk)> {
        let export = self.exports.get(&volume)?;
        if self.is_told && !(self.sections.contains(&volume) && self.known.contains(&volume)) {
            return None;
        }
        let serial: Serial = export.target.strip_prefix("/dev/disk/by-id/virtio-")?.parse().ok()?;
        let devnum = *host.links.get(&serial)?;
        host.disks.get(&devnum).filter(|disk| disk.group == NBD).map(|disk| (devnum, disk))
    }

    pub(super) fn connect(&mut self, host: &Host, volume: VolumeId) -> Option<String> {
        if !self.answers() {
            return None;
        }
        let (devnum, disk) = self.opens(host, volume)?;
        self.came += 1;
        let name = format!("10.0.0.1:{}", self.came);
        self.clients.push(Client { name: name.clone(), volume, devnum, diskseq: disk.diskseq });
        Some(name)
    }

    pub(super) fn start(&mut self) {
        (self.up, self.changed) = (true, true);
        self.life += 1;
        self.known.clone_from(&self.sections);
    }

    pub(super) fn die(&mut self) {
        (self.up, self.changed) = (false, true);
        self.clients.clear();
    }

    /// Drops the proofs of links that are gone.
    pub(super) fn forget_old_proofs(&mut self) {
        let exports = &self.exports;
        self.proofs.retain(|id, proofs| {
            proofs.retain(|proof| exports.get(id).is_some_and(|export| export.made == proof.made));
            !proofs.is_empty()
        });
    }

    fn check(&self) -> io::Result<()> {
        if self.broken { Err(io::Error::other("the folder is broken")) } else { Ok(()) }
    }

    pub(super) fn went(&mut self, which: Which, name: String) {
        self.folders.went.insert((which, OsString::from(name)));
    }

    pub(super) fn came(&mut self, which: Which, name: String) {
        self.folders.came.insert((which, OsString::from(name)));
    }

    pub(super) fn make_link(&mut self, volume: VolumeId, target: &str) {
        self.made += 1;
        let made = self.made;
        self.exports.insert(volume, Export { target: target.to_owned(), made });
        self.came(Which::Links, volume.export_name());
    }

    pub(super) fn remove_link(&mut self, volume: VolumeId) -> bool {
        let removed = self.exports.remove(&volume).is_some();
        if removed {
            self.went(Which::Links, volume.export_name());
        }
        removed
    }

    pub(super) fn prepare(&mut self, volume: VolumeId) -> io::Result<bool> {
        self.check()?;
        let new = self.sections.insert(volume);
        if new {
            self.came(Which::Sections, format!("{}.conf", volume.export_name()));
        }
        Ok(new)
    }

    pub(super) fn publish(&mut self, volume: VolumeId, link: &str) -> io::Result<()> {
        self.check()?;
        if self.exports.get(&volume).is_none_or(|export| export.target != link) {
            self.make_link(volume, link);
        }
        self.touched.remove(&volume);
        Ok(())
    }

    pub(super) fn revoke(&mut self, volume: VolumeId) -> io::Result<()> {
        if self.broken {
            self.stuck.insert(volume);
        }
        self.check()?;
        self.stuck.remove(&volume);
        self.touched.remove(&volume);
        self.remade.remove(&volume);
        self.remove_link(volume);
        Ok(())
    }

    pub(super) fn forget(&mut self, volume: VolumeId) -> io::Result<()> {
        self.revoke(volume)?;
        if self.sections.remove(&volume) {
            self.went(Which::Sections, format!("{}.conf", volume.export_name()));
        }
        Ok(())
    }

    pub(super) fn look(&self, volume: VolumeId) -> io::Result<Option<String>> {
        self.check()?;
        let missing = self.is_told && !self.sections.contains(&volume);
        Ok(self.exports.get(&volume).map(|export| if missing { String::new() } else { export.target.clone() }))
    }

    pub(super) fn list(&self, known: &BTreeSet<VolumeId>) -> io::Result<Contents> {
        self.check()?;
        let mut contents = Contents::default();
        for volume in self.exports.keys().chain(&self.sections) {
            if !known.contains(volume) {
                contents.strays.insert(*volume);
            } else if let Ok(Some(target)) = self.look(*volume) {
                contents.links.insert(*volume, target);
            }
        }
        contents.prepared = self.sections.iter().copied().filter(|volume| known.contains(volume)).collect();
        Ok(contents)
    }
}
