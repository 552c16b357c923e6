//! The disks of this host: events about them, their facts in sysfs, and the proof that a disk is a volume's.
//!
//! In the order of the data: [`monitor`] receives datagrams and copies each into an owned [`event::DiskEvent`].
//! [`sysfs`] reads the [`facts::Facts`] of one disk, with one of three outcomes ([`found`]). [`table`] keeps which
//! disks are present. [`evidence`] decides, purely, whether a disk's facts prove that it is a volume's.
//! [`host_changes`] notices when this host starts to use a disk. [`closing`] reports when a disk is closed.

pub mod attributes;
pub mod closing;
pub mod event;
pub mod evidence;
pub mod facts;
pub mod found;
pub mod host;
pub mod host_changes;
mod kernel_events;
pub mod limited;
mod loops;
pub mod monitor;
pub mod reader_process;
pub mod scheme;
pub mod stack;
pub mod sysfs;
pub mod table;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The kernel's device number of a block device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DevNum {
    /// The driver's number.
    pub major: u32,
    /// The number of the device within the driver.
    pub minor: u32,
}

impl DevNum {
    /// Converts `st_rdev` or `st_dev` of a `stat` result.
    pub fn from_raw(dev: u64) -> Self {
        Self { major: rustix::fs::major(dev), minor: rustix::fs::minor(dev) }
    }
}

impl fmt::Display for DevNum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl fmt::Debug for DevNum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for DevNum {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (major, minor) = text.trim().split_once(':').ok_or(())?;
        Ok(Self { major: major.parse().map_err(drop)?, minor: minor.parse().map_err(drop)? })
    }
}

impl Serialize for DevNum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DevNum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|()| serde::de::Error::custom(format!("{text:?} is no device number")))
    }
}
