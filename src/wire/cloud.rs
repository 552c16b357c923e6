//! What is known of CloudStack.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{nullable, shown_as_written};

/// CloudStack, as far as calls have shown it; no call is made for health.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct CloudHealth {
    pub(crate) url: String,
    #[schema(inline)]
    pub(crate) state: CloudState,
    /// Why calls fail; `null`: they do not.
    #[serde(deserialize_with = "nullable")]
    pub(crate) why: Option<String>,
    /// Since when calls fail.
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(deserialize_with = "nullable")]
    pub(crate) since: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(deserialize_with = "nullable")]
    pub(crate) last_answer: Option<Timestamp>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) last_refusal: Option<LastRefusal>,
    pub(crate) own_vm: OwnVmHealth,
}

/// `unknown`: there was no call since the start. `failing`: the last call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CloudState {
    Unknown,
    Answers,
    Failing,
}

shown_as_written!(CloudState);

/// The last refusal by CloudStack.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct LastRefusal {
    #[schema(value_type = String, format = DateTime)]
    pub(crate) at: Timestamp,
    /// The command of its API.
    #[schema(value_type = String)]
    pub(crate) command: Cow<'static, str>,
    /// Its own words.
    pub(crate) message: String,
}

/// Which VM in CloudStack this host is. `id` and `why` are both `null` until an operation needs to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct OwnVmHealth {
    #[serde(deserialize_with = "nullable")]
    pub(crate) id: Option<String>,
    /// Where the id comes from.
    #[serde(deserialize_with = "nullable")]
    pub(crate) from: Option<String>,
    /// Why the id is unknown.
    #[serde(deserialize_with = "nullable")]
    pub(crate) why: Option<String>,
}
