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
use crate::store::StoreError;
use crate::volume::{Intent, Reason, User};

/// Inputs that may wait. A full channel makes the monitor ask for a resync, and callers wait.
const QUEUE: usize = 8192;

/// The channel on which everything reaches the engine: made before it, for tools that tell something by themselves.
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
