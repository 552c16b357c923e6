//! A disk that is present, and the answer to a resync.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::nullable;
use crate::device::DevNum;
use crate::identity::{Serial, VolumeId};

/// A disk.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct DeviceView {
    pub(crate) node: String,
    #[schema(value_type = String)]
    pub(crate) devnum: DevNum,
    pub(crate) diskseq: u64,
    pub(crate) size_bytes: u64,
    pub(crate) read_only: bool,
    #[schema(value_type = Option<String>)]
    #[serde(deserialize_with = "nullable")]
    pub(crate) scheme: Option<Cow<'static, str>>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) serial: Option<Serial>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) link: Option<String>,
    /// What the link leads to: a device number, `missing` or `other`.
    #[serde(deserialize_with = "nullable")]
    pub(crate) link_target: Option<String>,
    /// How this host uses the disk.
    pub(crate) uses: Vec<String>,
    /// Whether udevd has reported the disk.
    pub(crate) settled: bool,
    /// The volume whose intent has this disk's serial.
    #[serde(deserialize_with = "nullable")]
    pub(crate) volume_id: Option<VolumeId>,
    /// Why the disk cannot be a volume's.
    #[serde(deserialize_with = "nullable")]
    pub(crate) unusable: Option<String>,
    /// Why the last read failed. The other fields are from the read before.
    #[serde(deserialize_with = "nullable")]
    pub(crate) unread: Option<String>,
}

/// All disks.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct DeviceList {
    pub(crate) devices: Vec<DeviceView>,
    pub(crate) count: usize,
}

/// The answer to a resync.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct Resynced {
    pub(crate) message: String,
}
