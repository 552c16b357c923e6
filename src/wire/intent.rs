//! An intent: the request, the record, and the answer to a withdrawal.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::nullable;
use super::number::whole;
use crate::identity::{Serial, VolumeId};
use crate::volume::State;

/// A request for an intent.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewIntent {
    /// The CloudStack volume's UUID.
    #[schema(value_type = VolumeId)]
    pub(crate) volume_id: String,
    /// The VM of the volume; by default this host's own.
    #[schema(max_length = 64, pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]*$")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) vm_id: Option<String>,
    /// The smallest size that the disk may have, in bytes.
    #[schema(minimum = 1, maximum = 9_223_372_036_854_775_807_i64)]
    #[serde(default, deserialize_with = "whole", skip_serializing_if = "Option::is_none")]
    pub(crate) size_bytes: Option<u64>,
    /// How long to wait for the disk, in seconds. A later disk is still served, and reported as late.
    #[schema(format = Int64, maximum = 4_294_967_295_i64)]
    #[serde(default, deserialize_with = "whole", skip_serializing_if = "Option::is_none")]
    pub(crate) deadline_seconds: Option<u32>,
}

/// An intent on record.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct IntentView {
    pub(crate) volume_id: VolumeId,
    pub(crate) serial: Serial,
    pub(crate) vm_id: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) size_bytes: Option<u64>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) deadline_seconds: Option<u32>,
    /// When the wait ends, by the present wall clock. The wait itself is measured by a clock that nobody can set.
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(deserialize_with = "nullable")]
    pub(crate) deadline_at: Option<Timestamp>,
    #[schema(value_type = String, format = DateTime)]
    pub(crate) created_at: Timestamp,
    /// The user who made the request.
    #[serde(deserialize_with = "nullable")]
    pub(crate) uid: Option<u32>,
    pub(crate) state: State,
}

/// All intents.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct IntentList {
    pub(crate) intents: Vec<IntentView>,
    pub(crate) count: usize,
}

/// The answer to a withdrawal.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct WithdrawnView {
    pub(crate) volume_id: VolumeId,
    pub(crate) message: String,
    /// Connections to the NBD server that were open; the server does not close them.
    pub(crate) clients_still_connected: Vec<String>,
    /// Whether all of these used this export; if not, some may use other exports.
    pub(crate) clients_exact: bool,
}
