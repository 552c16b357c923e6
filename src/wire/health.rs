//! The present state of each part.

use std::borrow::Cow;
use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

use super::cloud::CloudHealth;
use super::names::{ProblemCode, RemarkCode};
use super::{nullable, shown_as_written};
use crate::export::nbd_server::mode::Mode;
use crate::reason::{Code, Named};
use crate::volume::State;

/// Health.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[allow(clippy::struct_field_names, reason = "the predecessor's names")]
pub(crate) struct Health {
    #[schema(inline)]
    pub(crate) status: HealthStatus,
    #[schema(value_type = String, format = DateTime)]
    pub(crate) timestamp: Timestamp,
    #[schema(value_type = String)]
    pub(crate) version: Cow<'static, str>,
    #[schema(value_type = String, format = DateTime)]
    pub(crate) started_at: Timestamp,
    /// Every problem; empty when healthy.
    pub(crate) problems: Vec<HealthProblem>,
    /// Facts about this host's setup that an operator should know; none of them makes it degraded.
    pub(crate) remarks: Vec<Remark>,
    pub(crate) monitor: MonitorHealth,
    pub(crate) udevd: UdevdHealth,
    pub(crate) resync: ResyncHealth,
    pub(crate) store: StoreHealth,
    /// The predecessor's tables.
    pub(crate) projection: Vec<ProjectionHealth>,
    pub(crate) backend: BackendHealth,
    pub(crate) helper: HelperHealth,
    /// `null`: attachd is not told of any CloudStack.
    #[serde(deserialize_with = "nullable")]
    pub(crate) cloud: Option<CloudHealth>,
    pub(crate) operations: OperationsHealth,
    /// Where the API is served.
    pub(crate) listeners: Vec<ListenerHealth>,
    /// The number of volumes in each state.
    #[schema(value_type = BTreeMap<String, usize>)]
    #[serde(serialize_with = "by_name")]
    pub(crate) volumes: BTreeMap<State, usize>,
    /// From here on the fields have the predecessor's names.
    #[schema(value_type = String)]
    pub(crate) service: Cow<'static, str>,
    pub(crate) cloudstack_health: String,
    pub(crate) database_health: String,
    #[schema(value_type = String)]
    pub(crate) device_monitor: Cow<'static, str>,
}

/// Serialises the counts in the order of the states' names, as earlier versions do.
fn by_name<S: Serializer>(counts: &BTreeMap<State, usize>, serializer: S) -> Result<S::Ok, S::Error> {
    let named: BTreeMap<&str, &usize> = counts.iter().map(|(state, count)| (state.as_str(), count)).collect();
    named.serialize(serializer)
}

/// `healthy`, `degraded` (there are problems) or `unhealthy` (no intent can be accepted; status 503).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum HealthStatus {
    Healthy,
    Degraded,
    Unhealthy,
}

/// One problem.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct HealthProblem {
    #[schema(value_type = ProblemCode)]
    pub(crate) code: Named<Code>,
    pub(crate) message: String,
    #[schema(value_type = String)]
    pub(crate) hint: Cow<'static, str>,
}

/// A fact that is worth knowing and is no problem by itself.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct Remark {
    #[schema(value_type = RemarkCode)]
    pub(crate) code: Named<Code>,
    pub(crate) message: String,
}

/// One socket at which the API is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Listener)]
pub(crate) struct ListenerHealth {
    /// A path, or an address with a port.
    pub(crate) address: String,
    #[schema(inline)]
    pub(crate) from: ListenerOrigin,
    /// Whether it takes TLS, and a token.
    pub(crate) tls: bool,
}

/// Who has opened a listener: a socket unit of systemd's, whose queue callers wait in while attachd restarts, or attachd
/// itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ListenerOrigin {
    Systemd,
    Attachd,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct MonitorHealth {
    pub(crate) udev: SocketHealth,
    pub(crate) kernel: SocketHealth,
}

/// One netlink socket.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct SocketHealth {
    pub(crate) events: u64,
    pub(crate) overruns: u64,
    /// Datagrams that the kernel dropped; `null`: unknown.
    #[serde(deserialize_with = "nullable")]
    pub(crate) drops: Option<u64>,
    pub(crate) receive_buffer_bytes: usize,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct UdevdHealth {
    #[schema(inline)]
    pub(crate) state: UdevdState,
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(deserialize_with = "nullable")]
    pub(crate) since: Option<Timestamp>,
}

/// `heard`, `silent` (an event is overdue for more than 10 s) or `unknown` (no event yet that would show it).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum UdevdState {
    Heard,
    Silent,
    Unknown,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct ResyncHealth {
    pub(crate) count: u64,
    #[schema(value_type = String)]
    pub(crate) last_reason: Cow<'static, str>,
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(deserialize_with = "nullable")]
    pub(crate) last_at: Option<Timestamp>,
    /// How often events were lost; each loss is followed by a resync.
    pub(crate) losses: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct StoreHealth {
    #[schema(inline)]
    pub(crate) state: StoreState,
    #[serde(deserialize_with = "nullable")]
    pub(crate) error: Option<String>,
}

/// How far the predecessor's tables in one database are behind.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct ProjectionHealth {
    /// The database.
    #[schema(value_type = String)]
    pub(crate) target: Cow<'static, str>,
    /// Volumes or operations whose rows are still to be written; `null`: unknown.
    #[serde(deserialize_with = "nullable")]
    pub(crate) owed: Option<u64>,
    /// Since when there has always been one.
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(deserialize_with = "nullable")]
    pub(crate) behind_since: Option<Timestamp>,
    /// Volumes or operations whose rows the database refuses; `null`: unknown.
    #[serde(deserialize_with = "nullable")]
    pub(crate) refused: Option<u64>,
    /// Why nothing can be written there.
    #[serde(deserialize_with = "nullable")]
    pub(crate) error: Option<String>,
}

/// What callers have asked for with `POST /api/v1/operations`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct OperationsHealth {
    /// How many have not ended.
    pub(crate) open: usize,
    /// When the oldest of them was asked for.
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(deserialize_with = "nullable")]
    pub(crate) oldest_at: Option<Timestamp>,
    /// How many of them should have ended long ago.
    pub(crate) late: usize,
    /// How many of the last 1000 have failed in the last hour; `null`: unknown.
    #[serde(deserialize_with = "nullable")]
    pub(crate) failed_last_hour: Option<u64>,
}

/// `ok` or `failing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StoreState {
    Ok,
    Failing,
}

/// attachd-helper, the privileged program.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct HelperHealth {
    #[schema(inline)]
    pub(crate) state: HelperState,
    #[serde(deserialize_with = "nullable")]
    pub(crate) why: Option<String>,
}

/// `answers`, `silent`, or `unknown` (not asked yet).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum HelperState {
    Answers,
    Silent,
    Unknown,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct BackendHealth {
    #[schema(value_type = String)]
    pub(crate) name: Cow<'static, str>,
    #[schema(inline)]
    #[serde(deserialize_with = "nullable")]
    pub(crate) mode: Option<BackendMode>,
    /// Why this mode was chosen.
    #[serde(deserialize_with = "nullable")]
    pub(crate) because: Option<String>,
    #[schema(inline)]
    pub(crate) state: BackendState,
    #[serde(deserialize_with = "nullable")]
    pub(crate) pid: Option<i32>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) why: Option<String>,
    pub(crate) listen: String,
    pub(crate) insecure: bool,
}

/// `signal` or `socket`, for nbd-server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BackendMode {
    Signal,
    Socket,
}

impl From<Mode> for BackendMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Signal => Self::Signal,
            Mode::Socket => Self::Socket,
        }
    }
}

/// `up`, `silent` (it runs but does not answer), `down` or `unknown`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BackendState {
    Up,
    Silent,
    Down,
    Unknown,
}

shown_as_written!(HealthStatus, UdevdState, StoreState, BackendMode, BackendState);
