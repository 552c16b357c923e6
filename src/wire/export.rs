//! The exports that NBD clients can connect to, and what the NBD server reports about them.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::nullable;
use super::volume::ExportView;
use crate::identity::VolumeId;

/// One export. The fields after `volume_id` have the predecessor's names.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct ExportEntry {
    #[serde(flatten)]
    pub(crate) export: ExportView,
    pub(crate) volume_id: VolumeId,
    #[serde(deserialize_with = "nullable")]
    pub(crate) device_path: Option<String>,
    #[schema(value_type = String)]
    pub(crate) id: Cow<'static, str>,
    pub(crate) export_name: String,
    pub(crate) port: u16,
    #[schema(inline)]
    pub(crate) status: PredecessorStatus,
    #[schema(value_type = String, format = DateTime)]
    pub(crate) created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub(crate) updated_at: Timestamp,
    #[schema(value_type = Object)]
    pub(crate) metadata: Map<String, Value>,
}

/// `active` or `pending`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PredecessorStatus {
    Active,
    Pending,
}

/// All exports.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct ExportList {
    pub(crate) exports: Vec<ExportEntry>,
    pub(crate) count: usize,
    /// The first ten names in the served folder that attachd did not make.
    pub(crate) foreign: Vec<String>,
    /// The number of such names.
    pub(crate) foreign_count: usize,
    /// With `check`: what the server reports about each export that it lists or should serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) checked: Option<Vec<CheckedExport>>,
    /// With `check`: two numbers that should be the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) served: Option<ServedCount>,
}

/// How many volumes clients should be served, and how many they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct ServedCount {
    /// Volumes whose disk is here and proven.
    pub(crate) due: usize,
    /// Those of them that a new client would be served.
    pub(crate) openable: usize,
}

impl ServedCount {
    /// Counts the exports that were checked.
    pub(crate) fn of(checked: &[CheckedExport]) -> Self {
        let due = checked.iter().filter(|export| export.due);
        let openable = due.clone().filter(|export| export.openable == Some(true)).count();
        Self { due: due.count(), openable }
    }
}

/// One export, as attachd wants it and as the server has it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(crate) struct CheckedExport {
    pub(crate) name: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) volume_id: Option<VolumeId>,
    /// Whether there is an intent for it.
    pub(crate) wanted: bool,
    /// Whether attachd lets clients in.
    pub(crate) published: bool,
    /// Whether its disk is proven, so that clients should be served now.
    pub(crate) due: bool,
    /// Whether the server lists it; `null`: the server lists nothing.
    #[serde(deserialize_with = "nullable")]
    pub(crate) listed: Option<bool>,
    /// Whether a new client would be served; `null`: not checked in time.
    #[serde(deserialize_with = "nullable")]
    pub(crate) openable: Option<bool>,
    /// Why a client would not be served, in the server's words.
    #[serde(deserialize_with = "nullable")]
    pub(crate) why: Option<String>,
    /// Whether the server remembers it although it is not wanted.
    pub(crate) stale: bool,
    /// How to make the server forget it.
    #[schema(value_type = Option<String>)]
    #[serde(deserialize_with = "nullable")]
    pub(crate) clear: Option<Cow<'static, str>>,
}
