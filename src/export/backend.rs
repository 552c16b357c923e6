//! What attachd asks of an NBD server's side, whichever server it is.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::folder::{Folder, Names};
use crate::identity::VolumeId;

/// One kind of NBD server. Everything here may be repeated and then changes nothing.
pub trait Backend: Send + Sync {
    /// Whether anything is to be prepared before there is a disk.
    fn prepares(&self) -> bool;

    /// Does what can be done before there is a disk; lets nobody in. Says whether the server must be told of it. May take
    /// long.
    fn prepare(&self, volume: VolumeId) -> io::Result<bool>;

    /// Makes the export serve `link`, once it is prepared.
    fn publish(&self, volume: VolumeId, link: &str) -> io::Result<()>;

    /// Lets no new client in, at once.
    fn revoke(&self, volume: VolumeId) -> io::Result<()>;

    /// Revokes, and removes what was prepared for a volume that is wanted no more. May take long.
    fn forget(&self, volume: VolumeId) -> io::Result<()>;

    /// What a volume's export leads to now, as in [`Contents::links`]; `None`: it is not published.
    fn look(&self, volume: VolumeId) -> io::Result<Option<String>>;

    /// What is published and prepared now, for the known volumes and for others. May take long.
    fn list(&self, known: &BTreeSet<VolumeId>) -> io::Result<Contents>;

    /// The folders it reads, and what each is for.
    fn folders(&self) -> Vec<(Which, &Folder)>;

    /// Whether the server has to be told (by a signal) when its files have changed.
    fn must_be_told(&self) -> bool;

    /// Looks for what would keep the server from taking up its files. May read thousands of them.
    fn check(&self) -> Check;
}

/// What a folder is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Which {
    /// The links that are served.
    Links,
    /// nbd-server's sections.
    Sections,
    /// The claims.
    Claims,
}

/// Exports of no known volume that are told at one time.
pub const STRAYS: usize = 1000;

/// What there is.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Published exports of known volumes and the paths they lead to. One that is under somebody else's control leads nowhere:
    /// its path is empty.
    pub links: BTreeMap<VolumeId, String>,
    /// Known volumes that something lies prepared for, whether they are published or not.
    pub prepared: BTreeSet<VolumeId>,
    /// Other volumes that are published or prepared: not more than [`STRAYS`].
    pub strays: BTreeSet<VolumeId>,
    /// There are more of these.
    pub more_strays: bool,
    /// Names that attachd did not make, but that the server offers all the same.
    pub foreign: Names,
    /// Why nothing can be made in a folder, if that is so.
    pub unusable: Option<String>,
}

/// What a check of the server's files has found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Check {
    /// The server would not take up its files, for this reason.
    pub refused: Option<String>,
    /// It would, but somebody should know.
    pub remarks: Vec<String>,
}
