//! What callers are answered, and what listeners are told.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::oneshot;

use crate::helper_client::Holders;
use crate::identity::{OperationId, Serial, VolumeId};
use crate::reason::StepName;
use crate::store::StoreError;
use crate::volume::{Reason, State};

/// Where an answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, Rejection>>;

/// Who is connected to an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Clients {
    /// Nobody, for certain.
    None,
    /// These, as the NBD server's open files show.
    Connected(Holders),
    /// Nobody can say.
    Unknown {
        /// For what reason.
        why: String,
        /// Who is connected to the server: perhaps some of these.
        candidates: Vec<String>,
    },
}

/// An intent was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// Just now.
    New,
    /// Already before, in the same words.
    Known,
}

/// An intent was withdrawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withdrawal {
    /// Connections to the NBD server that were open and stay so: a server does not cut a client for a removed link.
    pub clients: Holders,
}

/// A request that cannot be met, for reasons the engine knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// There is no such intent.
    #[error("there is no intent for volume {0}")]
    Unknown(VolumeId),
    /// The volume is already wanted, with something else.
    #[error(
        "volume {volume} already has an intent whose {field} is {have}, not {asked}; withdraw it first to change that"
    )]
    Differs {
        /// Which volume.
        volume: VolumeId,
        /// The name in the request.
        field: &'static str,
        /// On record.
        have: String,
        /// In the request.
        asked: String,
    },
    /// Two volumes would show the same serial.
    #[error(
        "volumes {asked} and {have} have the same serial {serial}: their disks cannot be told apart. Withdraw {have} first, or give one of the volumes another id"
    )]
    SerialTaken {
        /// In the request.
        asked: VolumeId,
        /// On record.
        have: VolumeId,
        /// Of both.
        serial: Serial,
    },
    /// This host uses the volume's disk itself.
    #[error("volume {volume} is a disk of this host's own: {uses}")]
    InUseByHost {
        /// Which volume.
        volume: VolumeId,
        /// How, with the device's name.
        uses: String,
    },
    /// Somebody uses the export.
    #[error(
        "volume {volume} cannot be withdrawn: NBD clients are connected to it ({clients}); end them, or withdraw with force"
    )]
    ClientsConnected {
        /// Which volume.
        volume: VolumeId,
        /// Their addresses.
        clients: Holders,
    },
    /// The export could not be taken away.
    #[error(
        "volume {0} cannot be withdrawn: its export could not be removed from the served folder; remove it by hand, or stop the NBD server, then ask again"
    )]
    ExportStuck(VolumeId),
    /// Somebody may be reading or writing the export.
    #[error(
        "volume {volume} cannot be withdrawn: whether NBD clients use it is not known: {why}{}; end them, or withdraw with force",
        connected(clients)
    )]
    ClientsUnknown {
        /// Which volume.
        volume: VolumeId,
        /// For what reason.
        why: String,
        /// The addresses of those who are connected to the server.
        clients: Vec<String>,
    },
    /// The volume is just being accepted or withdrawn by another request.
    #[error("volume {0} is just being withdrawn by another request; ask again")]
    Leaving(VolumeId),
    /// An operation has taken the export away, and has not ended.
    #[error("volume {volume} is sealed by the operation {operation}; wait until that has ended, or cancel it")]
    Sealed {
        /// Which volume.
        volume: VolumeId,
        /// Which operation.
        operation: OperationId,
    },
    /// What is to be released is not sealed.
    #[error("volume {volume} is not sealed by the operation {operation}: seal it first")]
    NotSealed {
        /// Which volume.
        volume: VolumeId,
        /// Which operation.
        operation: OperationId,
    },
    /// There are as many intents as there may be.
    #[error(
        "there are {used} intents {whose}, and at most {limit} may be: withdraw some that are not needed, or raise the limit ([limits] in attachd.toml)"
    )]
    TooMany {
        /// Of all or of one user.
        whose: String,
        /// How many there are.
        used: usize,
        /// How many there may be.
        limit: u32,
    },
    /// The store did not take it; nothing was changed.
    #[error("{0}. Nothing was changed. {hint}", hint = .0.hint())]
    Store(StoreError),
    /// The claims folder did not take it; nothing was changed.
    #[error("{0}. Nothing was changed; free space or repair the folder, then ask again")]
    NotDurable(String),
    /// The folder of claims did not take it; nothing was changed.
    #[error("{0}. Nothing was changed; repair the folder of claims (attachctl health), then ask again")]
    NotClaimed(String),
}

fn connected(clients: &[String]) -> String {
    match clients {
        [] => " (nobody is connected to its port)".to_owned(),
        clients => format!(" ({} connection(s) to its port: {})", clients.len(), clients.join(", ")),
    }
}

/// One step in a volume's life, as it happens.
#[derive(Debug, Clone)]
pub struct Event {
    /// Counts up from 1 since the daemon started; a gap means events were missed.
    pub id: u64,
    /// When.
    pub at: Timestamp,
    /// Which volume.
    pub volume_id: VolumeId,
    /// Its serial.
    pub serial: Serial,
    /// The name of the step.
    pub event: StepName,
    /// Particulars.
    pub detail: String,
    /// Where the volume stands after it.
    pub state: State,
    /// Why it is not served.
    pub reason: Option<Reason>,
}

/// Events are shared by all who listen.
pub type SharedEvent = Arc<Event>;
