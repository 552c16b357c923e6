//! A refusal, and where a volume stands that was waited for in vain.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::names::ErrorCode;
use super::nullable;
use super::volume::{ReasonView, VolumeView};
use crate::reason::{Code, Named};
use crate::volume::State;

/// The body of every refusal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct ErrorBody {
    /// A sentence: what happened, to what, what to do.
    pub(crate) error: String,
    #[schema(value_type = ErrorCode)]
    pub(crate) code: Named<Code>,
    /// Particulars, by code.
    pub(crate) details: Value,
}

/// The particulars of `WAIT_TIMEOUT`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Standing {
    /// Where the volume is.
    pub(crate) state: State,
    /// Why it is not served.
    #[serde(deserialize_with = "nullable")]
    pub(crate) reason: Option<ReasonView>,
}

impl From<VolumeView> for Standing {
    fn from(VolumeView { state, reason, .. }: VolumeView) -> Self {
        Self { state, reason }
    }
}
