//! Volumes as CloudStack shows them.

use crate::identity::{VmId, VolumeId};

/// A volume as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudVolume {
    /// Which.
    pub id: VolumeId,
    /// What people call it.
    pub name: String,
    /// How large it is; 0 while CloudStack has not made it yet.
    pub size_bytes: u64,
    /// Where it stands.
    pub state: VolumeState,
    /// What it is for.
    pub kind: VolumeKind,
    /// The VM that has it.
    pub vm: Option<VmId>,
    /// Its slot there.
    pub device_id: Option<u32>,
    /// CloudStack refuses to delete it until this is switched off.
    pub delete_protection: bool,
}

/// What a volume is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeKind {
    /// A VM starts from it.
    Root,
    /// Data. A root disk that was detached is data for CloudStack, too.
    Data,
}

/// Where a volume stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeState {
    /// Only on record: it is made when it is first attached.
    Allocated,
    /// Being made.
    Creating,
    /// At rest, attached or not.
    Ready,
    /// Being attached.
    Attaching,
    /// Moving to other storage.
    Migrating,
    /// A snapshot is being taken.
    Snapshotting,
    /// Going back to a snapshot.
    RevertSnapshotting,
    /// Being made larger or smaller.
    Resizing,
    /// Being copied.
    Copying,
    /// Being restored from a backup.
    Restoring,
    /// Uploaded by a user.
    Uploaded,
    /// Deleted; it may still be recovered.
    Destroy,
    /// Being removed for good.
    Expunging,
    /// Removed for good.
    Expunged,
    /// Another one, by CloudStack's name.
    Other(String),
}

impl VolumeState {
    /// The state of that name.
    pub fn named(name: &str) -> Self {
        match name {
            "Allocated" => Self::Allocated,
            "Creating" => Self::Creating,
            "Ready" => Self::Ready,
            "Attaching" => Self::Attaching,
            "Migrating" => Self::Migrating,
            "Snapshotting" => Self::Snapshotting,
            "RevertSnapshotting" => Self::RevertSnapshotting,
            "Resizing" => Self::Resizing,
            "Copying" => Self::Copying,
            "Restoring" => Self::Restoring,
            "Uploaded" => Self::Uploaded,
            "Destroy" => Self::Destroy,
            "Expunging" => Self::Expunging,
            "Expunged" => Self::Expunged,
            other => Self::Other(other.to_owned()),
        }
    }

    /// Returns whether the volume is deleted or being deleted.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Destroy | Self::Expunging | Self::Expunged => true,
            Self::Other(name) => name == "Destroying",
            _ => false,
        }
    }
}

impl std::fmt::Display for VolumeState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Other(name) => f.pad(name),
            // The variants are named as in CloudStack.
            known => f.pad(&format!("{known:?}")),
        }
    }
}

/// A volume to be made. It is not attached to anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVolume {
    /// What people call it.
    pub name: String,
    /// How large: CloudStack makes volumes of whole GiB only.
    pub gib: u64,
    /// The offering that says on which storage.
    pub disk_offering: String,
    /// Where.
    pub zone: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_shown_as_cloudstack_names_it() {
        for name in ["Allocated", "Ready", "RevertSnapshotting", "Destroy", "Expunged", "Of another version"] {
            assert_eq!(VolumeState::named(name).to_string(), name);
        }
        assert!(matches!(VolumeState::named("ready"), VolumeState::Other(_)), "not guessed");
    }
}
