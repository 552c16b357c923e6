//! nbdkit as the NBD server. It serves the folder of links directly, so nothing needs to be prepared.

use std::collections::BTreeSet;
use std::io;

use super::backend::{Backend, Check, Contents, Which};
use super::links::Links;
use crate::folder::Folder;
use crate::identity::VolumeId;

/// The nbdkit backend, with the folder of links that it serves.
pub struct NbdkitBackend(pub Links);

impl Backend for NbdkitBackend {
    fn prepares(&self) -> bool {
        false
    }

    fn prepare(&self, _volume: VolumeId) -> io::Result<bool> {
        Ok(false)
    }

    fn publish(&self, volume: VolumeId, link: &str) -> io::Result<()> {
        self.0.make(volume, link)
    }

    fn revoke(&self, volume: VolumeId) -> io::Result<()> {
        self.0.remove(volume)
    }

    fn forget(&self, volume: VolumeId) -> io::Result<()> {
        self.0.remove(volume)
    }

    fn look(&self, volume: VolumeId) -> io::Result<Option<String>> {
        self.0.look(volume)
    }

    fn list(&self, known: &BTreeSet<VolumeId>) -> io::Result<Contents> {
        self.0.list(known)
    }

    fn folders(&self) -> Vec<(Which, &Folder)> {
        vec![(Which::Links, self.0.folder())]
    }

    fn must_be_told(&self) -> bool {
        false
    }

    fn check(&self) -> Check {
        Check::default()
    }
}
