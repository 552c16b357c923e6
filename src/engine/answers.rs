//! The answers to callers, and the events for subscribers.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::oneshot;

use crate::helper_client::Holders;
use crate::identity::{OperationId, Serial, VolumeId};
use crate::reason::StepName;
use crate::store::StoreError;
use crate::volume::{Reason, State};

/// The sender of an answer.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, Rejection>>;

/// Who is connected to an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Clients {
    /// Certainly nobody.
    None,
    /// These clients, as the NBD server's open files show.
    Connected(Holders),
    /// Unknown.
    Unknown {
        /// Why it is unknown.
        why: String,
        /// The clients connected to the server, some of which may use the export.
        candidates: Vec<String>,
    },
}

/// An intent was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// The intent is new.
    New,
    /// The same intent was accepted before.
    Known,
}

/// An intent was withdrawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withdrawal {
    /// Connections to the NBD server that stay open, because a server does not disconnect a client when its link is
    /// removed.
    pub clients: Holders,
}

/// Why the engine refuses a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The volume has no intent.
    #[error("there is no intent for volume {0}")]
    Unknown(VolumeId),
    /// The volume has an intent that differs.
    #[error(
        "volume {volume} already has an intent whose {field} is {have}, not {asked}; withdraw it first to change that"
    )]
    Differs {
        /// The volume.
        volume: VolumeId,
        /// The name of the field in the request.
        field: &'static str,
        /// The recorded value.
        have: String,
        /// The requested value.
        asked: String,
    },
    /// Two volumes would show the same serial.
    #[error(
        "volumes {asked} and {have} have the same serial {serial}: their disks cannot be told apart. Withdraw {have} first, or give one of the volumes another id"
    )]
    SerialTaken {
        /// The requested volume.
        asked: VolumeId,
        /// The recorded volume.
        have: VolumeId,
        /// The serial of both.
        serial: Serial,
    },
    /// This host uses the volume's disk itself.
    #[error("volume {volume} is a disk of this host's own: {uses}")]
    InUseByHost {
        /// The volume.
        volume: VolumeId,
        /// How the host uses the disk, with the device's name.
        uses: String,
    },
    /// Clients are connected to the export.
    #[error(
        "volume {volume} cannot be withdrawn: NBD clients are connected to it ({clients}); end them, or withdraw with force"
    )]
    ClientsConnected {
        /// The volume.
        volume: VolumeId,
        /// The clients' addresses.
        clients: Holders,
    },
    /// The export could not be revoked.
    #[error(
        "volume {0} cannot be withdrawn: its export could not be removed from the served folder; remove it by hand, or stop the NBD server, then ask again"
    )]
    ExportStuck(VolumeId),
    /// It is unknown whether clients use the export.
    #[error(
        "volume {volume} cannot be withdrawn: whether NBD clients use it is not known: {why}{}; end them, or withdraw with force",
        connected(clients)
    )]
    ClientsUnknown {
        /// The volume.
        volume: VolumeId,
        /// Why it is unknown.
        why: String,
        /// The addresses of the clients that are connected to the server.
        clients: Vec<String>,
    },
    /// Another request is accepting or withdrawing the volume.
    #[error("volume {0} is just being withdrawn by another request; ask again")]
    Leaving(VolumeId),
    /// An operation has sealed the volume, and has not ended.
    #[error("volume {volume} is sealed by the operation {operation}; wait until that has ended, or cancel it")]
    Sealed {
        /// The volume.
        volume: VolumeId,
        /// The operation.
        operation: OperationId,
    },
    /// The volume to release is not sealed by this operation.
    #[error("volume {volume} is not sealed by the operation {operation}: seal it first")]
    NotSealed {
        /// The volume.
        volume: VolumeId,
        /// The operation.
        operation: OperationId,
    },
    /// The limit of intents is reached.
    #[error(
        "there are {used} intents {whose}, and at most {limit} may be: withdraw some that are not needed, or raise the limit ([limits] in attachd.toml)"
    )]
    TooMany {
        /// Whether the limit is of all intents or of one user's.
        whose: String,
        /// How many intents there are.
        used: usize,
        /// The limit.
        limit: u32,
    },
    /// The store failed. Nothing was changed.
    #[error("{0}. Nothing was changed. {hint}", hint = .0.hint())]
    Store(StoreError),
    /// The folder of claims failed. Nothing was changed.
    #[error("{0}. Nothing was changed; free space or repair the folder, then ask again")]
    NotDurable(String),
    /// The folder of claims failed. Nothing was changed.
    #[error("{0}. Nothing was changed; repair the folder of claims (attachctl health), then ask again")]
    NotClaimed(String),
}

fn connected(clients: &[String]) -> String {
    match clients {
        [] => " (nobody is connected to its port)".to_owned(),
        clients => format!(" ({} connection(s) to its port: {})", clients.len(), clients.join(", ")),
    }
}

/// One step in a volume's life.
#[derive(Debug, Clone)]
pub struct Event {
    /// Counts from 1 since the daemon's start. A gap means that events were missed.
    pub id: u64,
    /// When the step happened.
    pub at: Timestamp,
    /// The volume.
    pub volume_id: VolumeId,
    /// Its serial.
    pub serial: Serial,
    /// The name of the step.
    pub event: StepName,
    /// Details.
    pub detail: String,
    /// The state of the volume after the step.
    pub state: State,
    /// Why the volume is not served.
    pub reason: Option<Reason>,
}

/// An event that all subscribers share.
pub type SharedEvent = Arc<Event>;
