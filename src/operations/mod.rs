//! Operations: what a caller asks for at both ends, of CloudStack and of this host, and can follow.
//!
//! ```text
//!  caller ─▶ Operations::submit ─▶ on record ─▶ a task ─▶ next (pure) ─▶ CloudStack, the engine's handle
//!                                                 ▲  └──────────────────────────┐
//!                                                 └─ what came of it (facts) ◀──┘
//! ```
//!
//! Each open operation has a task (`drive`), which asks [`next::next`] what is to be done, puts the step on record, does it,
//! and asks again with what came of it. It is a client of the engine's handle and of [`Cloud`], as the API is of the former.
//! There is no task while nothing is open.

mod drive;
mod facts;
mod faults;
pub mod host;
mod next;
mod registry;
#[cfg(test)]
mod tests;
pub mod tools;

use std::sync::{Arc, PoisonError};

use tokio::sync::{Mutex, Semaphore, broadcast};

use crate::clock::Clock;
use crate::cloud::Cloud;
use crate::identity::{OperationId, VmId, VolumeId};
use crate::operation::{
    CleanUp, Fault, IdempotencyKey, Operation, OperationState, Place, Placeholder, Progress, Request, Written,
};
use crate::reason::{Code, StoryStep};
use crate::store::{Change, OperationFilter, StoreError};
use registry::{Entry, Registry};
use tools::{Host, OwnVm, Records};

/// Operations that may be open at one time, and those of one user but root.
const MOST_OPEN: usize = 1024;
const MOST_OPEN_OF_ONE: usize = 256;

/// Calls of CloudStack at one time: more would only wait there.
const CALLS_AT_ONCE: usize = 16;

/// States that who listens may be behind.
const NEWS: usize = 256;

/// A handle to the operations. Cheap to clone.
#[derive(Clone)]
pub struct Operations {
    inner: Arc<Inner>,
}

/// What operations work with.
pub struct Tools {
    /// CloudStack; `None`: attachd does not work with one.
    pub cloud: Option<Arc<dyn Cloud>>,
    /// This host's volumes.
    pub host: Arc<dyn Host>,
    /// What is on record.
    pub records: Arc<dyn Records>,
    /// Which VM this host is.
    pub own_vm: Arc<dyn OwnVm>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

struct Inner {
    tools: Tools,
    registry: std::sync::Mutex<Registry>,
    /// One request is accepted at a time: two that ask for the same are one.
    accepting: Arc<Mutex<()>>,
    news: broadcast::Sender<Arc<Operation>>,
    /// Turns to ask CloudStack.
    calls: Arc<Semaphore>,
}

/// An operation was accepted.
#[derive(Debug, Clone)]
pub struct Submitted {
    /// As it is now.
    pub operation: Arc<Operation>,
    /// It has begun with this request; else it was asked for before.
    pub new: bool,
}

/// What is asked for, and by whom.
#[derive(Debug, Clone)]
pub struct Submission {
    /// What.
    pub request: Request,
    /// As its caller wrote it, if it came by one of the predecessor's routes. Then what cannot be carried out is put on record
    /// as failed and not refused: that is where such a caller looks.
    pub written: Option<Written>,
    /// The caller's own name for it.
    pub key: Option<IdempotencyKey>,
    /// How long it may take, in seconds; `None`: as long as is usual.
    pub limit_seconds: Option<u32>,
    /// The user, from the socket's peer credentials.
    pub uid: Option<u32>,
}

/// A request was not accepted, and nothing has begun.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Without CloudStack.
    #[error(
        "attachd does not work with CloudStack here: set [cloudstack] url and the keys in attachd.toml and restart it"
    )]
    NoCloud,
    /// It cannot be told whether the VM is this one.
    #[error(
        "it is not known which VM of CloudStack's this host is: {0}. Set [host] vm_id in attachd.toml, or see `attachctl health`"
    )]
    OwnVmUnknown(String),
    /// What is asked for is done to other VMs only.
    #[error("{vm} is this host's own VM: {why}")]
    OwnVm {
        /// The VM.
        vm: VmId,
        /// What cannot be done to it.
        why: &'static str,
    },
    /// The volume is to come back to another host.
    #[error("{0} is not this host's VM: a volume comes back to the host that is asked")]
    NotThisHost(VmId),
    /// It is none that can be carried out.
    #[error("{0}")]
    Unusable(String),
    /// The name belongs to another request.
    #[error("the idempotency key {key} belongs to the operation {operation}, which asks for something else")]
    KeyUsed {
        /// The name.
        key: IdempotencyKey,
        /// The operation that has it.
        operation: OperationId,
    },
    /// So many are open already.
    #[error("there are {used} open operations {whose}, and at most {limit} may be: wait until some have ended")]
    TooMany {
        /// Of all or of one user.
        whose: &'static str,
        /// How many.
        used: usize,
        /// How many may be.
        limit: usize,
    },
    /// There is none.
    #[error("there is no operation {0}")]
    Unknown(OperationId),
    /// It cannot be called off.
    #[error("the operation {id} can be called off no more: it is {state}, at the step {step}; follow it to its end")]
    TooLate {
        /// Which.
        id: OperationId,
        /// How far it is.
        state: OperationState,
        /// Where.
        step: &'static str,
    },
    /// The store did not take it, or could not be asked.
    #[error("{0}. Nothing was begun. {hint}", hint = .0.hint())]
    Store(StoreError),
}

impl Refused {
    /// Whether the same request would be refused a moment later, too.
    const fn is_final(&self) -> bool {
        matches!(
            self,
            Self::NoCloud | Self::OwnVmUnknown(_) | Self::OwnVm { .. } | Self::NotThisHost(_) | Self::Unusable(_)
        )
    }

    /// For programs.
    pub fn code(&self) -> Code {
        match self {
            Self::NoCloud => Code::NoCloud,
            Self::OwnVmUnknown(_) => Code::OwnVmUnknown,
            Self::OwnVm { .. } => Code::OwnVm,
            Self::NotThisHost(_) => Code::VolumeElsewhere,
            Self::Unusable(_) => Code::InvalidBody,
            Self::KeyUsed { .. } => Code::KeyUsed,
            Self::TooMany { .. } => Code::TooManyOperations,
            Self::Unknown(_) => Code::NoSuchOperation,
            Self::TooLate { .. } => Code::TooLate,
            Self::Store(error) => error.code(),
        }
    }
}

impl Operations {
    /// Operations as they are on record: those that are open go on.
    pub fn start(tools: Tools, open: Vec<Operation>, last_number: u64, placeholders: Vec<Placeholder>) -> Self {
        let (news, _) = broadcast::channel(NEWS);
        let registry = std::sync::Mutex::new(Registry::new(last_number, placeholders));
        let inner = Arc::new(Inner {
            tools,
            registry,
            accepting: Arc::default(),
            news,
            calls: Arc::new(Semaphore::new(CALLS_AT_ONCE)),
        });
        // Without CloudStack they stay as they are until it is back.
        for operation in open.into_iter().filter(|_| inner.tools.cloud.is_some()) {
            inner.begin(Arc::new(operation), true);
        }
        Self { inner }
    }

    /// Accepts an operation; it is on record when this answers with success. One that asks for the same as an open one, or has
    /// the name of an earlier one, is that one.
    pub async fn submit(&self, submission: Submission) -> Result<Submitted, Refused> {
        let Submission { request, written, key, limit_seconds, uid } = submission;
        let tools = &self.inner.tools;
        if tools.cloud.is_none() && written.is_none() {
            return Err(Refused::NoCloud);
        }
        let own = tools.own_vm.find().await;
        let request = request.seen_from(own.as_ref().ok().copied());
        let accepting = Arc::clone(&self.inner.accepting).lock_owned().await;
        if let Some(key) = &key
            && let Some(known) = self.known(uid, key).await?
        {
            if known.request != request {
                return Err(Refused::KeyUsed { key: key.clone(), operation: known.id });
            }
            return Ok(Submitted { operation: known, new: false });
        }
        if key.is_none()
            && let Some(operation) = self.same(&request)
        {
            return Ok(Submitted { operation, new: false });
        }
        let fits = if tools.cloud.is_none() { Err(Refused::NoCloud) } else { fit(&request, own) };
        let (own, fault) = match fits {
            Ok(own) => (own, None),
            Err(refused) if written.is_some() && refused.is_final() => {
                (None, Some(Fault::new(refused.code(), refused.to_string())))
            }
            Err(refused) => return Err(refused),
        };
        self.too_many(uid)?;
        let (wall, now) = (tools.clock.wall(), tools.clock.steady());
        let limit = limit_seconds.unwrap_or_else(|| request.kind().usual_limit());
        let operation = Operation {
            id: OperationId::from(tools::new_id()),
            number: self.registry().next_number(),
            volume: request.volume(),
            vm: request.vm().or_else(|| own.filter(|_| is_here(&request))),
            request,
            written,
            key,
            uid,
            state: if fault.is_some() { OperationState::Failed } else { OperationState::Pending },
            progress: Progress::begin(),
            response: None,
            limit_seconds: limit,
            deadline: now.after(jiff::SignedDuration::from_secs(limit.into())),
            created_at: wall,
            updated_at: wall,
            completed_at: fault.is_some().then_some(wall),
            fault,
        };
        // Whether its caller stays or not: what is on record is carried out.
        let inner = Arc::clone(&self.inner);
        let accepted = tokio::spawn(async move {
            let change = vec![Change::Operation(Box::new(operation.clone()))];
            inner.tools.records.write(change).await?;
            let operation = Arc::new(operation);
            inner.accepted(&operation);
            drop(accepting);
            Ok(operation)
        });
        let accepted = accepted.await.unwrap_or(Err(StoreError::Closed));
        let operation = accepted.map_err(Refused::Store)?;
        Ok(Submitted { operation, new: true })
    }

    /// An operation as it is now.
    pub async fn get(&self, id: OperationId) -> Result<Arc<Operation>, Refused> {
        let entry = self.registry().entry(id);
        if let Some(entry) = entry {
            return Ok(entry.operation());
        }
        match self.inner.tools.records.operation(id).await {
            Ok(Some(operation)) => Ok(Arc::new(operation)),
            Ok(None) => Err(Refused::Unknown(id)),
            Err(error) => Err(Refused::Store(error)),
        }
    }

    /// The operation of the same volume that goes first.
    pub fn waits_for(&self, operation: &Operation) -> Option<OperationId> {
        self.registry().before(operation)
    }

    /// Those that have not ended, in no order.
    pub fn open(&self) -> Vec<Arc<Operation>> {
        self.registry().all_open()
    }

    /// Operations that are on record, the newest first.
    pub async fn list(&self, filter: OperationFilter) -> Result<Vec<Operation>, Refused> {
        self.inner.tools.records.list(filter).await.map_err(Refused::Store)
    }

    /// Calls an operation off, as long as that is harmless, and returns when that is decided.
    pub async fn cancel(&self, id: OperationId) -> Result<Arc<Operation>, Refused> {
        let entry = self.registry().entry(id);
        let Some(entry) = entry else {
            let operation = self.get(id).await?;
            return called_off(&operation).unwrap_or_else(|| Err(too_late(&operation)));
        };
        let mut current = entry.follow();
        entry.call_off();
        loop {
            let operation = Arc::clone(&current.borrow_and_update());
            if let Some(answer) = called_off(&operation) {
                return answer;
            }
            if current.changed().await.is_err() {
                return self.get(id).await;
            }
        }
    }

    /// Returns when the operation has ended, with how.
    pub async fn ended(&self, id: OperationId) -> Result<Arc<Operation>, Refused> {
        let entry = self.registry().entry(id);
        if let Some(entry) = entry {
            let mut current = entry.follow();
            if let Ok(ended) = current.wait_for(|operation| operation.state.is_ended()).await {
                return Ok(Arc::clone(&ended));
            }
        }
        self.get(id).await
    }

    /// Each operation, each time that it changes from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Operation>> {
        self.inner.news.subscribe()
    }

    /// The volumes that operations had attached to other VMs.
    pub fn placeholders(&self) -> Vec<Placeholder> {
        self.registry().placeholders()
    }

    /// Ends all tasks where they are: the next start goes on.
    pub fn stop(&self) {
        self.registry().stop();
    }

    /// Whether attachd works with CloudStack here.
    pub fn has_cloud(&self) -> bool {
        self.inner.tools.cloud.is_some()
    }

    /// The other VM that has the volume, as far as operations have attached it there.
    pub fn placeholder(&self, volume: VolumeId) -> Option<Placeholder> {
        self.registry().placeholder(volume).cloned()
    }

    fn same(&self, request: &Request) -> Option<Arc<Operation>> {
        self.registry().same(request)
    }

    async fn known(&self, uid: Option<u32>, key: &IdempotencyKey) -> Result<Option<Arc<Operation>>, Refused> {
        let open = self.registry().keyed(uid, key);
        if open.is_some() {
            return Ok(open);
        }
        let kept = self.inner.tools.records.keyed(uid, key.clone()).await.map_err(Refused::Store)?;
        Ok(kept.map(Arc::new))
    }

    fn too_many(&self, uid: Option<u32>) -> Result<(), Refused> {
        let (all, own) = self.registry().open(uid);
        if all >= MOST_OPEN {
            return Err(Refused::TooMany { whose: "on this host", used: all, limit: MOST_OPEN });
        }
        if uid != Some(0) && own >= MOST_OPEN_OF_ONE {
            return Err(Refused::TooMany { whose: "of this user", used: own, limit: MOST_OPEN_OF_ONE });
        }
        Ok(())
    }

    fn registry(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.inner.registry()
    }
}

impl Inner {
    fn registry(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is carried out from now on, unless it has ended with its request.
    fn accepted(self: &Arc<Self>, operation: &Arc<Operation>) {
        if !operation.state.is_ended() {
            return self.begin(Arc::clone(operation), false);
        }
        let (id, kind, volume) = (operation.id, operation.request.kind(), operation.volume);
        let (volume, why) =
            (volume.map(|volume| volume.to_string()), operation.fault.as_ref().map(ToString::to_string));
        let step = StoryStep::OperationFailed.name();
        tracing::warn!(EVENT = step, OPERATION_ID = %id, VOLUME_ID = volume, "{kind}: {}", why.unwrap_or_default());
        // Perhaps nobody listens.
        let _ = self.news.send(Arc::clone(operation));
    }

    /// It has a task from now on.
    fn begin(self: &Arc<Self>, operation: Arc<Operation>, resumed: bool) {
        let id = operation.id;
        let entry = self.registry().insert(operation);
        self.tell(&entry);
        let task = tokio::spawn(drive::run(Arc::clone(self), id, resumed));
        self.registry().carried_out_by(id, task.abort_handle());
    }

    /// Says how far an operation is.
    fn tell(&self, entry: &Entry) {
        // Perhaps nobody listens.
        let _ = self.news.send(entry.operation());
    }
}

/// Whether the request can be met at all, as far as that is known without CloudStack; this host's VM, if it is known.
fn fit(request: &Request, own: Result<VmId, String>) -> Result<Option<VmId>, Refused> {
    let refused = |vm, why| Err(Refused::OwnVm { vm, why });
    match (request, own) {
        (Request::Unusable(unusable), _) => Err(Refused::Unusable(unusable.why.clone())),
        // Which of the two it is would be a guess.
        (Request::Attach(_) | Request::AttachRoot(_) | Request::Cleanup(_), Err(why)) => {
            Err(Refused::OwnVmUnknown(why))
        }
        (Request::AttachRoot(attach), Ok(own)) if attach.to == Place::Here => {
            refused(own, "it has its root disk, and gets no other")
        }
        (Request::Cleanup(cleanup), Ok(own)) if cleanup.test_vm == own => {
            refused(own, "a test is cleaned up after in another VM, which is stopped")
        }
        (Request::Cleanup(CleanUp { back_to: Place::Vm(vm), .. }), Ok(_)) => Err(Refused::NotThisHost(*vm)),
        (_, own) => Ok(own.ok()),
    }
}

fn is_here(request: &Request) -> bool {
    match request {
        Request::Attach(attach) | Request::AttachRoot(attach) => attach.to == Place::Here,
        Request::Detach(detach) | Request::Delete(detach) => detach.from == Some(Place::Here),
        Request::Create(_) | Request::Cleanup(_) | Request::Unusable(_) => false,
    }
}

/// What came of calling it off, if that is decided.
fn called_off(operation: &Arc<Operation>) -> Option<Result<Arc<Operation>, Refused>> {
    match operation.state {
        OperationState::Cancelled => Some(Ok(Arc::clone(operation))),
        OperationState::Completed | OperationState::Failed => Some(Err(too_late(operation))),
        _ if !operation.progress.step.is_harmless() => Some(Err(too_late(operation))),
        OperationState::Pending | OperationState::Executing => None,
    }
}

fn too_late(operation: &Operation) -> Refused {
    Refused::TooLate { id: operation.id, state: operation.state, step: operation.progress.step.name() }
}
