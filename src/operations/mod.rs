//! Operations: requests that change something both in CloudStack and on this host, and that a caller can follow.
//!
//! ```text
//!  caller ─▶ Operations::submit ─▶ on record ─▶ a task ─▶ next (pure) ─▶ CloudStack, the engine's handle
//!                                                 ▲  └──────────────────────────┐
//!                                                 └──── the results (facts) ◀───┘
//! ```
//!
//! Each open operation has a task ([`drive`]). It asks [`next::next`] what is next, puts the step on record, takes it, and asks
//! again with the result. It is a client of the engine's handle and of [`crate::cloud::Cloud`], as the API is of the handle.
//! Without an open operation there is no task.

mod core;
mod drive;
mod facts;
mod faults;
pub mod host;
mod next;
mod registry;
#[cfg(test)]
mod tests;
pub mod tools;

use std::sync::{Arc, MutexGuard};

use jiff::Timestamp;
use tokio::sync::broadcast;

use self::core::Core;
pub use self::core::Tools;
use crate::identity::{OperationId, VmId, VolumeId};
use crate::operation::{
    CleanUp, Fault, IdempotencyKey, Operation, OperationState, Place, Placeholder, Progress, Request, Written,
};
use crate::reason::{Code, StoryStep};
use crate::store::{Change, OperationFilter, StoreError};
use drive::{Asked, UnderWay};
use registry::Registry;

/// The limits of operations that are open at one time: of all users, and of one user except root.
const MOST_OPEN: usize = 1024;
const MOST_OPEN_OF_ONE: usize = 256;

/// A handle to the operations. Cheap to clone.
#[derive(Clone)]
pub struct Operations {
    core: Arc<Core>,
}

/// The answer to a request that is accepted.
#[derive(Debug, Clone)]
pub struct Submitted {
    /// The operation as it is now.
    pub operation: Arc<Operation>,
    /// Whether it begins with this request. Otherwise it was asked for before.
    pub new: bool,
}

/// A request, with its caller.
#[derive(Debug, Clone)]
pub struct Submission {
    /// The request.
    pub request: Request,
    /// As its caller wrote it, if it came by one of the predecessor's routes. Then what cannot be carried out is put on record
    /// as failed and not refused: that is where such a caller looks.
    pub written: Option<Written>,
    /// The caller's idempotency key.
    pub key: Option<IdempotencyKey>,
    /// The time limit in seconds; `None`: the usual one.
    pub limit_seconds: Option<u32>,
    /// The user, from the socket's peer credentials.
    pub uid: Option<u32>,
}

/// Why a request is not accepted. Nothing has begun.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// attachd works without CloudStack.
    #[error(
        "attachd does not work with CloudStack here: set [cloudstack] url and the keys in attachd.toml and restart it"
    )]
    NoCloud,
    /// The own VM is unknown, so it cannot be told whether the request is about this host.
    #[error(
        "it is not known which VM of CloudStack's this host is: {0}. Set [host] vm_id in attachd.toml, or see `attachctl health`"
    )]
    OwnVmUnknown(String),
    /// The request can be carried out for other VMs only.
    #[error("{vm} is this host's own VM: {why}")]
    OwnVm {
        /// The VM.
        vm: VmId,
        /// Why it is refused.
        why: &'static str,
    },
    /// The volume is to come back to another host.
    #[error("{0} is not this host's VM: a volume comes back to the host that is asked")]
    NotThisHost(VmId),
    /// The request cannot be carried out.
    #[error("{0}")]
    Unusable(String),
    /// The idempotency key belongs to another request.
    #[error("the idempotency key {key} belongs to the operation {operation}, which asks for something else")]
    KeyUsed {
        /// The key.
        key: IdempotencyKey,
        /// The operation that has it.
        operation: OperationId,
    },
    /// Too many operations are open.
    #[error("there are {used} open operations {whose}, and at most {limit} may be: wait until some have ended")]
    TooMany {
        /// Whether the limit is of all users or of one.
        whose: &'static str,
        /// How many are open.
        used: usize,
        /// The limit.
        limit: usize,
    },
    /// There is no such operation.
    #[error("there is no operation {0}")]
    Unknown(OperationId),
    /// The operation cannot be cancelled any more.
    #[error("the operation {id} can be called off no more: it is {state}, at the step {step}; follow it to its end")]
    TooLate {
        /// The operation.
        id: OperationId,
        /// Its state.
        state: OperationState,
        /// Its step.
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

    /// Returns the code for programs.
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
    /// Starts with the operations that are on record: the open ones go on.
    pub fn start(tools: Tools, open: Vec<Operation>, last_number: u64, placeholders: Vec<Placeholder>) -> Self {
        let core = Core::new(tools, last_number, placeholders);
        // Without CloudStack in the configuration they wait for it.
        for operation in open.into_iter().filter(|_| core.tools.cloud.is_some()) {
            begin(&core, Arc::new(operation), true, None);
        }
        Self { core }
    }

    /// Accepts a request. The operation is on record when this succeeds. A request that is the same as that of an open
    /// operation, or that has the idempotency key of an earlier one, is answered with that operation.
    pub async fn submit(&self, submission: Submission) -> Result<Submitted, Refused> {
        let Submission { request, written, key, limit_seconds, uid } = submission;
        let tools = &self.core.tools;
        if tools.cloud.is_none() && written.is_none() {
            return Err(Refused::NoCloud);
        }
        let own = tools.own_vm.find().await;
        let request = request.seen_from(own.as_ref().ok().copied());
        let accepting = Arc::clone(&self.core.accepting).lock_owned().await;
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
        // What it has to know first is asked while it is put on record.
        let first = next::first(&operation.request).filter(|_| {
            let free = |volume| self.registry().is_free(volume);
            !operation.state.is_ended() && operation.volume.is_some_and(free)
        });
        let call = first.zip(tools.cloud.as_ref());
        let call = call.map(|(look, cloud)| UnderWay::begin(&self.core, cloud, Asked::Look(look)));
        // What is on record is carried out, also if its caller does not wait.
        let core = Arc::clone(&self.core);
        let accepted = tokio::spawn(async move {
            let change = vec![Change::Operation(Box::new(operation.clone()))];
            core.tools.records.write(change).await?;
            let operation = Arc::new(operation);
            accepted_now(&core, &operation, call);
            drop(accepting);
            Ok(operation)
        });
        let accepted = accepted.await.unwrap_or(Err(StoreError::Closed));
        let operation = accepted.map_err(Refused::Store)?;
        Ok(Submitted { operation, new: true })
    }

    /// Returns an operation as it is now.
    pub async fn get(&self, id: OperationId) -> Result<Arc<Operation>, Refused> {
        let entry = self.registry().entry(id);
        if let Some(entry) = entry {
            return Ok(entry.operation());
        }
        match self.core.tools.records.operation(id).await {
            Ok(Some(operation)) => Ok(Arc::new(operation)),
            Ok(None) => Err(Refused::Unknown(id)),
            Err(error) => Err(Refused::Store(error)),
        }
    }

    /// Returns the operation of the same volume that goes first.
    pub fn waits_for(&self, operation: &Operation) -> Option<OperationId> {
        self.registry().before(operation)
    }

    /// Returns since when CloudStack says that it has attached the operation's volume to this host, if it says so.
    pub fn attached_since(&self, id: OperationId) -> Option<Timestamp> {
        self.registry().entry(id).and_then(|entry| entry.attached_since())
    }

    /// Returns the operations that have not ended, in no order.
    pub fn open(&self) -> Vec<Arc<Operation>> {
        self.registry().all_open()
    }

    /// Returns operations that are on record, the newest first.
    pub async fn list(&self, filter: OperationFilter) -> Result<Vec<Operation>, Refused> {
        self.core.tools.records.list(filter).await.map_err(Refused::Store)
    }

    /// Cancels an operation if that is harmless. Returns when that is decided.
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

    /// Waits until the operation has ended, and returns it.
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

    /// Subscribes to operations: each is sent each time that it changes.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Operation>> {
        self.core.news.subscribe()
    }

    /// Returns the volumes that operations had attached to other VMs.
    pub fn placeholders(&self) -> Vec<Placeholder> {
        self.registry().placeholders()
    }

    /// Ends all tasks where they are: the next start goes on.
    pub fn stop(&self) {
        self.registry().stop();
    }

    /// Whether attachd works with CloudStack here.
    pub fn has_cloud(&self) -> bool {
        self.core.tools.cloud.is_some()
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
        let kept = self.core.tools.records.keyed(uid, key.clone()).await.map_err(Refused::Store)?;
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

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.core.registry()
    }
}

/// Starts the task of an operation. `call`: the question that it begins with, if it is asked already.
fn begin(core: &Arc<Core>, operation: Arc<Operation>, resumed: bool, call: Option<UnderWay>) {
    let id = operation.id;
    let entry = core.registry().insert(operation);
    core.tell(&entry);
    let task = tokio::spawn(drive::run(Arc::clone(core), id, resumed, call));
    core.registry().carried_out_by(id, task.abort_handle());
}

/// Carries an operation out from now on, unless it has ended with its request.
fn accepted_now(core: &Arc<Core>, operation: &Arc<Operation>, call: Option<UnderWay>) {
    if !operation.state.is_ended() {
        return begin(core, Arc::clone(operation), false, call);
    }
    let (id, kind, volume) = (operation.id, operation.request.kind(), operation.volume);
    let (volume, why) = (volume.map(|volume| volume.to_string()), operation.fault.as_ref().map(ToString::to_string));
    let step = StoryStep::OperationFailed.name();
    tracing::warn!(EVENT = step, OPERATION_ID = %id, VOLUME_ID = volume, "{kind}: {}", why.unwrap_or_default());
    // An error means that nobody has subscribed.
    let _ = core.news.send(Arc::clone(operation));
}

/// Checks what can be checked without CloudStack. Returns this host's own VM, if it is known.
fn fit(request: &Request, own: Result<VmId, String>) -> Result<Option<VmId>, Refused> {
    let refused = |vm, why| Err(Refused::OwnVm { vm, why });
    match (request, own) {
        (Request::Unusable(unusable), _) => Err(Refused::Unusable(unusable.why.clone())),
        // Whether this host or another VM is meant would be a guess.
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

/// Returns the answer to a cancellation, if it is decided.
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
