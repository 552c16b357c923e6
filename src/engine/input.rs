//! Everything that can happen to the engine: one type, one channel.

use tokio::sync::{mpsc, oneshot};

use super::admissions::NotAdmitted;
use super::answers::{Accepted, Clients, Reply};
use super::departure::{Caller, Removed};
use super::errands::Asked;
use super::leaving::{Call, Outcome};
use super::telling::{FileChange, NotTold};
use super::tools::{AllDisks, Died, Greeted};
use super::volume::Ticket;
use super::waiting::{Done, Round};
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
use crate::helper_client::{Exclusive, HelperError};
use crate::identity::{Serial, VolumeId};
use crate::store::{Change, StoreError};
use crate::volume::{Intent, Reason, User};

/// The number of inputs that may wait. If the channel is full, the monitor asks for a resync, and callers wait.
const QUEUE: usize = 8192;

/// The channel on which all inputs reach the engine. It is made before the engine, for tools that send inputs by
/// themselves.
pub struct Inputs {
    pub(super) sender: mpsc::Sender<Input>,
    pub(super) receiver: mpsc::Receiver<Input>,
}

impl Default for Inputs {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        Self { sender, receiver }
    }
}

/// One thing that happened.
pub(crate) enum Input {
    /// A timer has ended.
    Tick,
    /// The store can be written again after it could not.
    StoreWorks,
    /// The monitor received or lost an event.
    Monitor(monitor::Notice),
    /// The NBD server has started or ended.
    Server(Server),
    /// The request of a caller.
    Request(Request),
    /// The rest of many volumes to settle, and the round that ends with them.
    Settle { ids: Vec<VolumeId>, round: Option<Round> },
    /// This host has begun or ceased to use disks.
    UseChanged(UseChanged),
    /// A disk was read.
    Looked { devnum: DevNum, reading: Reading, found: Found<Facts> },
    /// A disk that did not answer in time has answered.
    Answered(DevNum),
    /// Every disk was read.
    Scanned { reading: Reading, all: std::io::Result<AllDisks>, reason: &'static str, round: Round },
    /// The disks of a new intent's serial were read before it is accepted.
    Examined { volume: VolumeId, disks: Result<Vec<Facts>, Died> },
    /// Something has changed in the folders.
    Folders(FolderChanges),
    /// The folders of exports were listed, or that failed.
    Exports { contents: std::io::Result<Contents>, round: Round },
    /// An export was prepared, or that failed. `true`: the server must be notified.
    Prepared { ticket: Ticket, result: std::io::Result<bool> },
    /// The claims were restored, or that failed.
    Claims { result: std::io::Result<Restored>, round: Round },
    /// A new intent is durable and claimed, or that failed.
    Admitted { volume: VolumeId, result: Result<(), NotAdmitted> },
    /// It is known who is connected to a volume's disks. `epoch`: the last revocation at the time of the question.
    Clients { ticket: Ticket, epoch: u64, clients: Clients },
    /// What was written about a volume's withdrawal is durable, or that failed.
    Leaving { ticket: Ticket, outcome: Outcome },
    /// The preparation and the claim of a withdrawn volume were removed, or that failed.
    Unclaimed { ticket: Ticket, removed: Removed },
    /// The row of a refused intent was deleted, or that failed, with the number of attempts.
    TakenBack { volume: VolumeId, attempts: u32, result: Result<(), StoreError> },
    /// The deletion is to be retried.
    TakeBackAgain(VolumeId, u32),
    /// A mapping is durable, or that failed.
    Recorded { ticket: Ticket, evidence: Evidence, result: Result<(), Reason> },
    /// The server was notified of all changes up to this one, or that failed.
    Told { last: Option<FileChange>, result: Result<(), NotTold> },
    /// The notification is to be retried.
    TellAgain,
    /// The helper answered, or failed.
    Helper { asked: Asked, answer: Result<(), HelperError> },
    /// The disk of a serial is to be un-marked, with the number of attempts.
    UnmarkAgain(Serial, u32),
    /// The answer whether a process has the disk open exclusively.
    Tried { ticket: Ticket, evidence: Evidence, answer: Result<Exclusive, HelperError> },
    /// A handshake without an export ended, in this life of the server.
    Greeted { life: u64, greeted: Greeted },
    /// A silent server is to be checked again.
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

/// The request of a caller.
pub(crate) enum Request {
    /// Accept an intent.
    Intend { intent: Intent, also: Vec<Change>, reply: Reply<Accepted> },
    /// Seal, unseal or withdraw a volume.
    Leave(VolumeId, Call, Caller),
    /// Read everything again: the reason, and who asks for it, if it is not attachd itself.
    Resync(&'static str, Option<User>, Done),
    /// Use new settings: the id of this host's own VM, and the limits of intents.
    TakeOver { vm_id: String, limits: Limits, done: oneshot::Sender<()> },
    /// End the streams of events, because the daemon stops.
    EndEventStreams,
    /// Check whether the NBD server answers.
    AskServer(oneshot::Sender<()>),
    /// A client of these volumes would not have been served. The server may be the cause.
    Doubt { volumes: Vec<VolumeId>, server: bool },
    /// Read the world.
    Read(Box<dyn FnOnce(&World) + Send>),
}
