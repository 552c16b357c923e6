//! nbdkit as the NBD server: it serves the folder of links itself, and there is nothing else to do.

use std::io;

use super::backend::{Backend, Check, Contents};
use super::links::Links;
use crate::identity::VolumeId;

/// nbdkit, as the engine sees it: what is published.
pub struct Nbdkit(pub Links);

impl Backend for Nbdkit {
    fn prepare(&self, _volume: VolumeId) -> io::Result<bool> {
        Ok(false)
    }

    fn publish(&self, volume: VolumeId, link: &str) -> io::Result<bool> {
        self.0.make(volume, link).map(|()| false)
    }

    fn revoke(&self, volume: VolumeId) -> io::Result<()> {
        self.0.remove(volume)
    }

    fn forget(&self, _volume: VolumeId) -> io::Result<()> {
        Ok(())
    }

    fn list(&self) -> io::Result<Contents> {
        self.0.list()
    }

    fn must_be_told(&self) -> bool {
        false
    }

    fn check(&self) -> Check {
        Check::default()
    }
}
