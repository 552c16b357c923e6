//! What attachd asks of an NBD server's side, whichever server it is.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::identity::VolumeId;

/// One kind of NBD server. Everything here may be repeated and then changes nothing.
pub trait Backend: Send + Sync {
    /// Does what can be done before there is a disk; lets nobody in. Says whether the server must be told of it.
    fn prepare(&self, volume: VolumeId) -> io::Result<bool>;

    /// Makes the export serve `link`. Says whether the server must be told of it.
    fn publish(&self, volume: VolumeId, link: &str) -> io::Result<bool>;

    /// Lets no new client in, at once.
    fn revoke(&self, volume: VolumeId) -> io::Result<()>;

    /// Revokes, and removes what was prepared for a volume that is wanted no more.
    fn forget(&self, volume: VolumeId) -> io::Result<()>;

    /// What is published now.
    fn list(&self) -> io::Result<Contents>;

    /// Whether the server has to be told (by a signal) when its files have changed.
    fn must_be_told(&self) -> bool;

    /// Looks for what would keep the server from taking up its files. May read thousands of them.
    fn check(&self) -> Check;
}

/// What there is.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Published exports and the paths they lead to. One that is under somebody else's control leads nowhere:
    /// its path is empty.
    pub links: BTreeMap<VolumeId, String>,
    /// Volumes that something lies prepared for, whether they are published or not.
    pub prepared: BTreeSet<VolumeId>,
    /// Names that attachd did not make, but that the server offers all the same.
    pub foreign: Vec<String>,
}

/// What a check of the server's files has found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Check {
    /// The server would not take up its files, for this reason.
    pub refused: Option<String>,
    /// It would, but somebody should know.
    pub remarks: Vec<String>,
}
