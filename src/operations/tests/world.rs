//! CloudStack, this host and the records as doubles that share one world, in tokio's paused time. Every call passes points
//! before and after it is carried out; at the one that is chosen the process dies, or the answer of CloudStack is cut off.

mod cloud;
mod host;
mod records;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::{Notify, broadcast};
use tokio::time::{Instant, sleep};

use super::super::tools::{Here, OwnVm};
use super::super::{Operations, Tools};
use crate::clock::{Clock, Steady};
use crate::cloud::{
    CallError, CloudVm, CloudVolume, JobStatus, Refusal, RefusalKind, Sent, Started, VmState, VolumeKind, VolumeState,
};
use crate::engine::{Event, SharedEvent};
use crate::identity::{JobId, OperationId, VmId, VolumeId};
use crate::operation::{Operation, Placeholder};
use crate::reason::{Code, StoryStep};
use crate::store::Change;
use crate::volume::{IntentOrigin, Reason, State};

/// An id, the same each time.
pub(super) fn id<T: std::str::FromStr<Err: std::fmt::Debug>>(n: u32) -> T {
    format!("{n:08x}-1b59-4f62-97e8-cefffdfe3804").parse().unwrap()
}

pub(super) fn own() -> VmId {
    id(0xa)
}

pub(super) fn test_vm() -> VmId {
    id(0xb)
}

/// How long it is until the guest sees a job's disk come or go, and from there until the job ends.
const UNTIL_SEEN: Duration = Duration::from_millis(1200);
const AFTER: Duration = Duration::from_millis(300);

/// What goes wrong.
#[derive(Debug, Clone, Default)]
#[allow(clippy::struct_excessive_bools, reason = "each is a trouble of its own")]
pub(super) struct Trouble {
    /// The process dies at this point.
    pub(super) die_at: Option<usize>,
    /// CloudStack's answer is cut off at this call of all: before it is carried out, or after.
    pub(super) cut_at: Option<(usize, bool)>,
    /// Jobs fail, with these words.
    pub(super) jobs_fail: Option<&'static str>,
    /// Jobs never end.
    pub(super) jobs_hang: bool,
    /// Jobs that are cancelled, without having done anything.
    pub(super) jobs_cancelled: bool,
    /// Nothing reaches CloudStack before that.
    pub(super) away_until: Option<Duration>,
    /// The disk of an attached volume shows no serial.
    pub(super) no_serial: bool,
    /// The disk of an attached volume is refused, in these words.
    pub(super) refuse: Option<&'static str>,
    /// CloudStack lets nobody in.
    pub(super) not_let_in: bool,
    /// CloudStack carries out these calls and does not answer them, until the client gives up.
    pub(super) silent: &'static [&'static str],
    /// CloudStack does not know the VM to which a volume is to be attached.
    pub(super) no_such_vm: bool,
    /// The server gives jobs ids of its own.
    pub(super) old_server: bool,
}

/// When the client gives up a call without an answer.
pub(super) const CALL_LIMIT: Duration = Duration::from_mins(1);

pub(super) struct Truth {
    pub(super) volumes: BTreeMap<VolumeId, CloudVolume>,
    pub(super) vms: BTreeMap<VmId, CloudVm>,
    jobs: BTreeMap<JobId, JobStatus>,
    pub(super) here: BTreeMap<VolumeId, Here>,
    /// Disks that this host has.
    pub(super) disks: BTreeSet<VolumeId>,
    pub(super) sealed: BTreeMap<VolumeId, OperationId>,
    pub(super) clients: BTreeSet<VolumeId>,
    pub(super) operations: BTreeMap<OperationId, Operation>,
    pub(super) placeholders: BTreeMap<VolumeId, Placeholder>,
    /// What CloudStack was asked to change.
    pub(super) log: Vec<String>,
    /// The names of the points that were passed.
    pub(super) points: Vec<String>,
    /// A seal is held against: the export may not be there while the disk goes.
    pub(super) wrongs: Vec<String>,
    calls: usize,
    last_volume: u32,
    /// The process has died: nothing of it goes on.
    dead: bool,
    /// How often it was doubted which VM this host is.
    pub(super) doubts: usize,
}

pub(super) struct World {
    state: Mutex<Truth>,
    trouble: Mutex<Trouble>,
    pub(super) died: Notify,
    events: broadcast::Sender<SharedEvent>,
    begun: Instant,
}

pub(super) fn volume(n: u32, vm: Option<VmId>) -> CloudVolume {
    CloudVolume {
        id: id(n),
        name: format!("disk-{n}"),
        size_bytes: 1 << 30,
        state: VolumeState::Ready,
        kind: VolumeKind::Data,
        vm,
        device_id: vm.map(|_| 1),
        delete_protection: false,
    }
}

fn vm(id: VmId, state: VmState) -> CloudVm {
    CloudVm { id, name: "vm".to_owned(), state, macs: Vec::new() }
}

impl Truth {
    fn write(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Operation(operation) => drop(self.operations.insert(operation.id, *operation)),
                Change::Place(placeholder) => drop(self.placeholders.insert(placeholder.volume, placeholder)),
                Change::Displace(volume) => drop(self.placeholders.remove(&volume)),
                _ => {}
            }
        }
    }
}

impl World {
    pub(super) fn new() -> Arc<Self> {
        let vms = [(own(), vm(own(), VmState::Running)), (test_vm(), vm(test_vm(), VmState::Running))];
        let state = Truth {
            volumes: BTreeMap::new(),
            vms: vms.into_iter().collect(),
            jobs: BTreeMap::new(),
            here: BTreeMap::new(),
            disks: BTreeSet::new(),
            sealed: BTreeMap::new(),
            clients: BTreeSet::new(),
            operations: BTreeMap::new(),
            placeholders: BTreeMap::new(),
            log: Vec::new(),
            points: Vec::new(),
            wrongs: Vec::new(),
            calls: 0,
            last_volume: 0x1000,
            dead: false,
            doubts: 0,
        };
        let (events, _) = broadcast::channel(64);
        Arc::new(Self {
            state: Mutex::new(state),
            trouble: Mutex::default(),
            died: Notify::new(),
            events,
            begun: Instant::now(),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, Truth> {
        self.state.lock().unwrap()
    }

    pub(super) fn trouble(&self) -> MutexGuard<'_, Trouble> {
        self.trouble.lock().unwrap()
    }

    /// A volume that CloudStack has, where it is; here it is served.
    pub(super) fn with(&self, volume: CloudVolume) -> VolumeId {
        let id = volume.id;
        if volume.vm == Some(own()) {
            let mut state = self.state();
            state.disks.insert(id);
            state.here.insert(id, here(State::Ready, IntentOrigin::Announced, id));
        }
        self.state().volumes.insert(id, volume);
        id
    }

    /// Jobs that hang come to nothing.
    pub(super) fn end_jobs(&self) {
        self.trouble().jobs_hang = false;
        for status in self.state().jobs.values_mut().filter(|status| **status == JobStatus::Running) {
            *status = JobStatus::Failed(refusal(RefusalKind::Other, "it hung"));
        }
    }

    /// Nothing is still to come of an operation.
    pub(super) async fn settled(&self, operations: &Operations, id: OperationId) {
        while operations.registry().entry(id).is_some() {
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// attachd starts, on what is on record.
    pub(super) fn start(self: &Arc<Self>) -> Operations {
        self.start_as(|| Ok(own()))
    }

    /// The same, where this is known of the own VM.
    pub(super) fn start_as(
        self: &Arc<Self>,
        own_vm: impl Fn() -> Result<VmId, String> + Send + Sync + 'static,
    ) -> Operations {
        let tools = Tools {
            cloud: Some(Arc::new(Double(Arc::clone(self)))),
            host: Arc::new(Double(Arc::clone(self))),
            records: Arc::new(Double(Arc::clone(self))),
            own_vm: Arc::new(Sure(own_vm, Arc::clone(self))),
            clock: Arc::new(VirtualClock(self.begun)),
        };
        let mut state = self.state();
        state.dead = false;
        let mut open: Vec<Operation> = state.operations.values().filter(|it| !it.is_settled()).cloned().collect();
        open.sort_by_key(|operation| operation.number);
        let last = state.operations.values().map(|operation| operation.number).max().unwrap_or_default();
        let placeholders = state.placeholders.values().cloned().collect();
        drop(state);
        Operations::start(tools, open, last, placeholders)
    }

    /// Passes a point; dies there, if it is the one.
    async fn point(&self, side: &str, name: &str) {
        let dies = self.trouble().die_at;
        let dead = {
            let mut state = self.state();
            if !state.dead {
                state.points.push(format!("{side}:{name}"));
                state.dead = dies == Some(state.points.len() - 1);
                if state.dead {
                    self.died.notify_one();
                }
            }
            state.dead
        };
        if dead {
            std::future::pending::<()>().await;
        }
    }

    /// A call to CloudStack.
    async fn call<T>(
        &self,
        name: &str,
        carried_out: impl FnOnce(&mut Truth) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        self.point("before", name).await;
        sleep(Duration::from_millis(5)).await;
        let number = {
            let mut state = self.state();
            state.calls += 1;
            state.calls - 1
        };
        let trouble = self.trouble().clone();
        let unclear = || CallError::Unreachable { sent: Sent::Unclear, why: "the connection was cut".to_owned() };
        let answer = match trouble {
            _ if trouble.cut_at == Some((number, false)) => Err(unclear()),
            _ if trouble.away_until.is_some_and(|until| self.begun.elapsed() < until) => {
                Err(CallError::Unreachable { sent: Sent::No, why: "connection refused".to_owned() })
            }
            _ if trouble.not_let_in => {
                Err(CallError::Refused(refusal(RefusalKind::NotLetIn, "unable to verify user credentials")))
            }
            _ => {
                let answer = carried_out(&mut self.state());
                if trouble.cut_at == Some((number, true)) { Err(unclear()) } else { answer }
            }
        };
        if trouble.silent.contains(&name) {
            sleep(CALL_LIMIT).await;
            return Err(unclear());
        }
        self.point("after", name).await;
        answer
    }

    /// Begins a job that does something later.
    fn begin(
        self: &Arc<Self>,
        state: &mut Truth,
        job: JobId,
        what: String,
        volume: Option<VolumeId>,
        at_the_guest: impl FnOnce(&World) + Send + 'static,
        at_the_end: impl FnOnce(&mut Truth) -> Result<(), &'static str> + Send + 'static,
    ) -> Result<Started, CallError> {
        state.log.push(what);
        let job = if self.trouble().old_server { JobId::from(super::super::tools::new_id()) } else { job };
        if state.jobs.contains_key(&job) {
            let words = "a job with this id already exists";
            return Err(CallError::Refused(refusal(RefusalKind::Invalid, words)));
        }
        state.jobs.insert(job, JobStatus::Running);
        let (world, trouble) = (Arc::clone(self), self.trouble().clone());
        tokio::spawn(async move {
            sleep(UNTIL_SEEN).await;
            let fails = trouble.jobs_fail;
            let stays = fails.is_some() || trouble.jobs_cancelled || trouble.jobs_hang;
            if !stays {
                at_the_guest(&world);
            }
            sleep(AFTER).await;
            if trouble.jobs_hang {
                return;
            }
            let mut state = world.state();
            let done = if stays { Err(fails.unwrap_or("cancelled")) } else { at_the_end(&mut state) };
            let status = match done {
                _ if trouble.jobs_cancelled => JobStatus::Cancelled,
                Ok(()) => JobStatus::Succeeded { volume },
                Err(words) => JobStatus::Failed(refusal(RefusalKind::Other, words)),
            };
            state.jobs.insert(job, status);
        });
        Ok(Started { job, volume })
    }

    fn tell(&self, volume: VolumeId, state: State) {
        let _ = self.events.send(Arc::new(Event {
            id: 1,
            at: Timestamp::UNIX_EPOCH,
            volume_id: volume,
            serial: volume.serial(),
            event: StoryStep::Ready.into(),
            detail: String::new(),
            state,
            reason: None,
        }));
    }

    /// A disk comes, and what is wanted is served.
    pub(super) fn plug(&self, id: VolumeId) {
        let Trouble { no_serial, refuse, .. } = self.trouble().clone();
        if no_serial {
            return;
        }
        let mut state = self.state();
        state.disks.insert(id);
        let sealed = state.sealed.contains_key(&id);
        if let Some(here) = state.here.get_mut(&id).filter(|_| !sealed) {
            here.state = State::Ready;
            if let Some(words) = refuse {
                here.state = State::Refused;
                here.reason = Some(Reason::about(Code::SchemeOff, "scsi", words));
            }
            here.device_path = Some(format!("/dev/disk/by-id/virtio-{}", id.serial()));
        }
        drop(state);
        self.tell(id, State::Ready);
    }

    fn unplug(&self, id: VolumeId) {
        let mut state = self.state();
        state.disks.remove(&id);
        if let Some(here) = state.here.get_mut(&id)
            && here.state == State::Ready
        {
            here.state = State::Lost;
            state.wrongs.push(format!("{id} was served when its disk went"));
        }
        drop(state);
        self.tell(id, State::Lost);
    }
}

pub(super) fn refusal(kind: RefusalKind, words: &str) -> Refusal {
    Refusal { kind, words: words.to_owned(), http: 530, code: Some(4250), hint: None }
}

pub(super) fn here(state: State, origin: IntentOrigin, id: VolumeId) -> Here {
    let device_path = (state == State::Ready).then(|| format!("/dev/disk/by-id/virtio-{}", id.serial()));
    Here { state, reason: None, origin, device_path }
}

/// CloudStack, the host and the records of a world.
struct Double(Arc<World>);

struct Sure<F>(F, Arc<World>);

impl<F: Fn() -> Result<VmId, String> + Send + Sync> OwnVm for Sure<F> {
    fn find(&self) -> BoxFuture<'_, Result<VmId, String>> {
        async { (self.0)() }.boxed()
    }

    fn doubt(&self) {
        self.1.state().doubts += 1;
    }
}

struct VirtualClock(Instant);

impl Clock for VirtualClock {
    fn wall(&self) -> Timestamp {
        Timestamp::from_microsecond(self.steady().as_micros()).unwrap()
    }

    fn steady(&self) -> Steady {
        Steady::from_micros(i64::try_from(self.0.elapsed().as_micros()).unwrap())
    }

    fn now(&self) -> std::time::Instant {
        Instant::now().into_std()
    }
}
