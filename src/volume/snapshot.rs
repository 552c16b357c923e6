//! A snapshot in CloudStack that a caller keeps track of. attachd only keeps what it is told.

use jiff::Timestamp;

use crate::identity::VolumeId;

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Of which volume.
    pub volume: VolumeId,
    /// The caller's own name for the volume's VM.
    pub vm_context: String,
    /// CloudStack's id of the snapshot.
    pub id: String,
    /// Its name; may be empty.
    pub name: String,
    /// Its state, in the caller's words.
    pub status: String,
    /// When the caller told of it.
    pub created_at: Timestamp,
}

/// What has changed of a snapshot; `None`: it stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotNews {
    /// CloudStack's id.
    pub id: Option<String>,
    /// The name.
    pub name: Option<String>,
    /// The state.
    pub status: Option<String>,
}
