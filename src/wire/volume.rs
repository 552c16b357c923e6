//! A volume: state, disk, export and story; and a step as an event.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::names::ReasonCode;
use super::{nullable, shown_as_written};
use crate::device::DevNum;
use crate::device::evidence::Evidence;
use crate::identity::{Serial, VolumeId};
use crate::reason::{Code, Named, StepName, StoryStep};
use crate::volume::{Entry, Reason, State};

/// A volume.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct VolumeView {
    pub(crate) volume_id: VolumeId,
    pub(crate) serial: Serial,
    pub(crate) vm_id: String,
    pub(crate) state: State,
    /// Since when the volume has this state.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) since: Timestamp,
    /// The by-id path, once a device was proven.
    #[serde(deserialize_with = "nullable")]
    pub(crate) device_path: Option<String>,
    /// What the by-id path resolves to now.
    #[serde(deserialize_with = "nullable")]
    pub(crate) device_node: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) size_bytes: Option<u64>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) diskseq: Option<u64>,
    pub(crate) export: ExportView,
    #[serde(deserialize_with = "nullable")]
    pub(crate) evidence: Option<EvidenceView>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) reason: Option<ReasonView>,
    /// The story, oldest first; left out in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) timeline: Option<Vec<EntryView>>,
    /// Whether the store does not answer. Then the story has only the entries that are not stored yet.
    pub(crate) timeline_incomplete: bool,
    /// `size_bytes` under the predecessor's name; 0 while unknown.
    pub(crate) size: u64,
    /// For compatibility with the predecessor.
    #[serde(deserialize_with = "nullable")]
    pub(crate) cloudstack_data: Option<String>,
}

/// Volumes.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct VolumeList {
    pub(crate) volumes: Vec<VolumeView>,
    pub(crate) count: usize,
}

/// An export.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct ExportView {
    pub(crate) name: String,
    pub(crate) uri: String,
    #[schema(inline)]
    pub(crate) state: ExportState,
}

/// `none`, `published` (offered but not proven yet) or `served`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ExportState {
    None,
    Published,
    Served,
}
shown_as_written!(ExportState);

/// The facts that tie the device to the volume.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct EvidenceView {
    pub(crate) serial: Serial,
    pub(crate) scheme: Cow<'static, str>,
    #[schema(value_type = String)]
    pub(crate) devnum: DevNum,
    pub(crate) diskseq: u64,
    pub(crate) size_bytes: u64,
    pub(crate) read_only: bool,
    pub(crate) boot_id: String,
    #[schema(value_type = String, format = DateTime)]
    pub(crate) at: Timestamp,
}

impl From<&Evidence> for EvidenceView {
    fn from(evidence: &Evidence) -> Self {
        Self {
            serial: evidence.serial,
            scheme: evidence.scheme.clone(),
            devnum: evidence.devnum,
            diskseq: evidence.diskseq,
            size_bytes: evidence.size_bytes,
            read_only: evidence.read_only,
            boot_id: evidence.boot_id.to_string(),
            at: evidence.at,
        }
    }
}

/// Why a volume is not served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Reason)]
pub(crate) struct ReasonView {
    #[schema(value_type = ReasonCode)]
    pub(crate) code: Named<Code>,
    /// What happened, and to what.
    pub(crate) message: String,
    /// What to do next.
    pub(crate) hint: Cow<'static, str>,
}

impl From<&Reason> for ReasonView {
    fn from(reason: &Reason) -> Self {
        Self { code: reason.code.into(), message: reason.message.clone(), hint: reason.hint.clone() }
    }
}

/// One step in a volume's story.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(as = Entry)]
pub(crate) struct EntryView {
    /// The time, with microseconds.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) at: Timestamp,
    #[schema(value_type = StoryStep)]
    pub(crate) event: StepName,
    /// Details, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) detail: String,
}

impl From<Entry> for EntryView {
    fn from(Entry { at, event, detail }: Entry) -> Self {
        Self { at, event, detail }
    }
}

/// The name of events that are an [`EventView`].
pub(crate) const VOLUME: &str = "volume";

/// The name of events that are a [`Missed`].
pub(crate) const MISSED: &str = "missed";

/// One step in a volume's life, as it happens.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(as = Event)]
pub(crate) struct EventView {
    /// A number that counts up from 1 since the daemon started; a gap means that events were missed.
    pub(crate) id: u64,
    /// The time.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) at: Timestamp,
    /// The volume.
    pub(crate) volume_id: VolumeId,
    /// The volume's serial.
    pub(crate) serial: Serial,
    #[schema(value_type = StoryStep)]
    pub(crate) event: StepName,
    /// Details, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) detail: String,
    /// The volume's state after this step.
    pub(crate) state: State,
    /// Why the volume is not served.
    #[serde(deserialize_with = "nullable")]
    pub(crate) reason: Option<ReasonView>,
}

/// Sent to a listener that was too slow.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Missed {
    /// The number of events that were not sent to it.
    pub(crate) missed: u64,
}
