//! Everything that can happen to the engine: one type, one channel.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::oneshot;

use super::leaving::{Call, Outcome};
use super::outside::Died;
use super::server::Greeted;
use super::tell::{FileChange, NotTold};
use super::tools::AllDisks;
use super::waiting::Round;
use super::withdraw::{Caller, Removed};
use super::world::World;
use crate::claims::Restored;
use crate::config::Limits;
use crate::device::DevNum;
use crate::device::evidence::Evidence;
use crate::device::facts::Facts;
use crate::device::found::Found;
use crate::device::host_changes::UseChanged;
use crate::device::monitor;
use crate::device::table::Reading;
use crate::export::backend::Contents;
use crate::export::probe::{ProbeError, Served};
use crate::export::server::Server;
use crate::folder_watch::FolderChanges;
use crate::helper_client::{Exclusive, HelperError, Holders};
use crate::identity::{OperationId, Serial, VolumeId};
use crate::reason::StepName;
use crate::store::StoreError;
use crate::volume::{Intent, Reason, State, User};

/// One thing that happened.
pub(crate) enum Input {
    /// It is time for something that was to wait.
    Tick,
    /// The store can be written again, after it could not.
    StoreWorks,
    /// The monitor heard or lost something.
    Monitor(monitor::Notice),
    /// The NBD server came or went.
    Server(Server),
    /// A caller asks.
    Request(Request),
    /// The rest of many volumes that are to be settled, and who is told when they are.
    Settle { ids: Vec<VolumeId>, round: Option<Round> },
    /// This host has begun to use disks, or has ceased to.
    UseChanged(UseChanged),
    /// A disk was read.
    Looked { devnum: DevNum, reading: Reading, found: Found<Facts> },
    /// A disk that did not answer in time has answered after all.
    Answered(DevNum),
    /// Every disk was read.
    Scanned { reading: Reading, all: std::io::Result<AllDisks>, reason: &'static str, round: Round },
    /// The disks of a new intent's serial were read before it was accepted.
    Examined { volume: VolumeId, disks: Result<Vec<Facts>, Died> },
    /// Something has happened in the folders.
    Folders(FolderChanges),
    /// The folders of exports were listed, or could not be.
    Exports { contents: std::io::Result<Contents>, round: Round },
    /// What needs no disk was done for an export, or could not be. `true`: the server must be told.
    Prepared { ticket: Ticket, result: std::io::Result<bool> },
    /// The claims were put right, or could not be.
    Claims { result: std::io::Result<Restored>, round: Round },
    /// A new intent is durable and claimed, or is not.
    Admitted { volume: VolumeId, result: Result<(), NotAdmitted> },
    /// It is known who is connected to a volume's disks. `epoch`: which revocation was the last when it was asked.
    Clients { ticket: Ticket, epoch: u64, clients: Clients },
    /// What was written of a volume on its way out is durable, or is not.
    Leaving { ticket: Ticket, outcome: Outcome },
    /// What was prepared for the export of a volume that goes is removed, and its claim, or could not be.
    Unclaimed { ticket: Ticket, removed: Removed },
    /// The row of a refused intent is deleted, or could not be, for this many times now.
    TakenBack { volume: VolumeId, attempts: u32, result: Result<(), StoreError> },
    /// It is time to try that once more.
    TakeBackAgain(VolumeId, u32),
    /// A mapping is durable, or is not.
    Recorded { ticket: Ticket, evidence: Evidence, result: Result<(), Reason> },
    /// The server was told of all changes up to this one, or could not be.
    Told { last: Option<FileChange>, result: Result<(), NotTold> },
    /// It is time to try that once more.
    TellAgain,
    /// The helper has answered, or has not.
    Helper { asked: Asked, answer: Result<(), HelperError> },
    /// It is time to have the disk of a serial un-marked, for this many times now.
    UnmarkAgain(Serial, u32),
    /// Whether anybody has the disk open exclusively.
    Tried { ticket: Ticket, evidence: Evidence, answer: Result<Exclusive, HelperError> },
    /// A handshake without an export ended; in which life of the server.
    Greeted { life: u64, greeted: Greeted },
    /// It is time to ask a silent server once more.
    GreetAgain { life: u64 },
    /// A handshake ended.
    Probed { ticket: Ticket, epoch: u64, evidence: Evidence, result: Result<Served, ProbeError> },
}

impl From<monitor::Notice> for Input {
    fn from(heard: monitor::Notice) -> Self {
        Self::Monitor(heard)
    }
}

impl From<UseChanged> for Input {
    fn from(changed: UseChanged) -> Self {
        Self::UseChanged(changed)
    }
}

impl From<Server> for Input {
    fn from(server: Server) -> Self {
        Self::Server(server)
    }
}

impl From<FolderChanges> for Input {
    fn from(changes: FolderChanges) -> Self {
        Self::Folders(changes)
    }
}

/// Where the end of a resync is told, or why there was none.
pub(crate) type Done = oneshot::Sender<Result<(), String>>;

/// One life of a volume in the engine. A volume that was withdrawn and announced again has another: what belongs to
/// the one before must not touch it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(super) volume: VolumeId,
    pub(super) instance: u64,
}

/// What the helper was asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Asked {
    /// To have udev mark this volume's disk.
    Mark(Ticket),
    /// To have udev un-mark the disk of a serial that is no longer claimed, for this many times now.
    Unmark(Serial, u32),
    /// To write down the host's own disks.
    HostDisks,
}

/// Where an answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, Rejection>>;

/// What a caller can ask.
pub(crate) enum Request {
    /// Accept an intent.
    Intend(Intent, Reply<Accepted>),
    /// Take a volume out of service, or back.
    Leave(VolumeId, Call, Caller),
    /// Read everything again: why, and who wants it, if it is not attachd itself.
    Resync(&'static str, Option<User>, Done),
    /// Go by other settings: this host's own VM, and how many intents there may be.
    TakeOver { vm_id: String, limits: Limits, done: oneshot::Sender<()> },
    /// End the streams of events: the daemon is stopping.
    EndEventStreams,
    /// Ask the NBD server whether it answers.
    AskServer(oneshot::Sender<()>),
    /// A client of these volumes would not have been served; perhaps it is the server's doing.
    Doubt { volumes: Vec<VolumeId>, server: bool },
    /// Look at the world.
    Read(Box<dyn FnOnce(&World) + Send>),
}

/// An intent was not accepted.
pub(crate) enum NotAdmitted {
    /// For this reason, and nothing is left of it.
    Refused(Rejection),
    /// For this reason, and its row could not be deleted.
    Left(Rejection),
    /// It has no claim, for this reason, and is perhaps on record.
    Unclaimed(String),
}

impl NotAdmitted {
    pub(super) fn unclaimed(why: &impl ToString) -> Self {
        Self::Unclaimed(why.to_string())
    }
}

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
