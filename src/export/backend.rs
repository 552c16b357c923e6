//! The interface between the engine and an NBD server, the same for each kind of server.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::folder::{Folder, Names};
use crate::identity::VolumeId;

/// One kind of NBD server. Each call may be repeated; a repetition changes nothing.
pub trait Backend: Send + Sync {
    /// Returns whether an export needs a preparation before its disk is there.
    fn prepares(&self) -> bool;

    /// Prepares the export of a volume before its disk is there. No client gets in by this. Returns whether the
    /// server must be signalled to read the change. May block for long.
    fn prepare(&self, volume: VolumeId) -> io::Result<bool>;

    /// Makes the prepared export serve `link`.
    fn publish(&self, volume: VolumeId, link: &str) -> io::Result<()>;

    /// Stops new clients from getting in, at once.
    fn revoke(&self, volume: VolumeId) -> io::Result<()>;

    /// Revokes the export and removes what was prepared, for a volume that was withdrawn. May block for long.
    fn forget(&self, volume: VolumeId) -> io::Result<()>;

    /// Reads where a volume's export leads now, as in [`Contents::links`]. `None`: the export is not published.
    fn look(&self, volume: VolumeId) -> io::Result<Option<String>>;

    /// Lists what is published and prepared now, for the known volumes and for others. May block for long.
    fn list(&self, known: &BTreeSet<VolumeId>) -> io::Result<Contents>;

    /// Returns the folders that the server reads, with the purpose of each.
    fn folders(&self) -> Vec<(Which, &Folder)>;

    /// Returns whether the server needs a signal when its files have changed.
    fn must_be_told(&self) -> bool;

    /// Checks the server's files for anything that would stop the server from reading them. May read thousands of
    /// files.
    fn check(&self) -> Check;
}

/// The purpose of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Which {
    /// The folder of links to served disks.
    Links,
    /// The folder of nbd-server's sections.
    Sections,
    /// The folder of claims.
    Claims,
}

/// The highest number of exports of unknown volumes that one listing names.
pub const MAX_STRAYS: usize = 1000;

/// The result of a listing: what is published and prepared.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Published exports of known volumes, with the path that each leads to. The path is empty if somebody else
    /// controls the export.
    pub links: BTreeMap<VolumeId, String>,
    /// Known volumes that have a preparation, published or not.
    pub prepared: BTreeSet<VolumeId>,
    /// Other volumes that are published or prepared, at most [`MAX_STRAYS`].
    pub strays: BTreeSet<VolumeId>,
    /// Whether there are more strays than the listing names.
    pub more_strays: bool,
    /// Names that the server offers and that attachd did not make.
    pub foreign: Names,
    /// Why nothing can be made in the folder; `None` if it is usable.
    pub unusable: Option<String>,
}

/// The result of a check of the server's files.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Check {
    /// Why the server would refuse its files, if it would.
    pub refused: Option<String>,
    /// Things that do not stop the server but that an operator should know.
    pub remarks: Vec<String>,
}
