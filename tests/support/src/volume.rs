//! The names of a volume: the UUID, the serial that the hypervisor gives its disk, the export and the by-id link.

use std::path::PathBuf;

/// A volume's names. The lab does not depend on attachd, so the rule is written a second time here on purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// The UUID, with hyphens.
    pub id: String,
    /// The UUID without hyphens, first 20 characters, lower case.
    pub serial: String,
}

impl Volume {
    /// Returns the names of a given UUID.
    pub fn of(uuid: &str) -> Volume {
        let serial = uuid.replace('-', "").to_lowercase().chars().take(20).collect();
        Volume { id: uuid.to_owned(), serial }
    }

    /// Returns a volume that no other test has, because other labs' disks are in the same `/sys/block`.
    pub fn random() -> Volume {
        let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid").expect("/proc is mounted");
        Volume::of(uuid.trim())
    }

    /// `migration-vol-<uuid>`.
    pub fn export(&self) -> String {
        format!("migration-vol-{}", self.id)
    }

    /// Returns the loop scheme's link.
    pub fn link(&self) -> PathBuf {
        PathBuf::from(format!("/dev/disk/by-id/loop-{}", self.serial))
    }
}
