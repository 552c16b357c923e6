//! Error responses, and the state of a volume after a wait that timed out.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::names::ErrorCode;
use super::nullable;
use super::volume::{ReasonView, VolumeView};
use crate::reason::{Code, Named};
use crate::volume::State;

/// The body of every error response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct ErrorBody {
    /// A sentence: what happened, to what, and what to do.
    pub(crate) error: String,
    #[schema(value_type = ErrorCode)]
    pub(crate) code: Named<Code>,
    /// Details, which depend on the code.
    pub(crate) details: Value,
}

/// The details of `WAIT_TIMEOUT`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WaitTimeoutDetails {
    /// The volume's state.
    pub(crate) state: State,
    /// Why the volume is not served.
    #[serde(deserialize_with = "nullable")]
    pub(crate) reason: Option<ReasonView>,
}

impl From<VolumeView> for WaitTimeoutDetails {
    fn from(VolumeView { state, reason, .. }: VolumeView) -> Self {
        Self { state, reason }
    }
}
