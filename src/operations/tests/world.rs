//! CloudStack, this host and the records as doubles that share one world, in tokio's paused time. Every call passes points
//! before and after it is carried out; at the one that is chosen the process dies, or the answer of CloudStack is cut off.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::{Notify, broadcast};
use tokio::time::{Instant, sleep};

use super::super::tools::{Here, Host, Listener, OwnVm, Recorded, Records};
use super::super::{Operations, Tools};
use crate::clock::{Clock, Steady};
use crate::cloud::{
    Answer, CallError, Cloud, CloudVm, CloudVolume, JobStatus, NewVolume, Refusal, RefusalKind, Sent, Started, VmState,
    VolumeKind, VolumeState,
};
use crate::engine::{Event, Rejection, SharedEvent, Stopping};
use crate::helper_client::Holders;
use crate::identity::{JobId, OperationId, VmId, VolumeId};
use crate::operation::{Flush, IdempotencyKey, Operation, Placeholder};
use crate::reason::{Code, StoryStep};
use crate::store::{Change, OperationFilter, StoreError};
use crate::volume::{Intent, IntentOrigin, Reason, State, User};

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
            own_vm: Arc::new(Sure(own_vm)),
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

struct Sure<F>(F);

impl<F: Fn() -> Result<VmId, String> + Send + Sync> OwnVm for Sure<F> {
    fn find(&self) -> BoxFuture<'_, Result<VmId, String>> {
        async { (self.0)() }.boxed()
    }

    fn doubt(&self) {}
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

impl Cloud for Double {
    fn volume(&self, id: VolumeId) -> Answer<'_, Option<CloudVolume>> {
        self.0.call("cloud.volume", move |state| Ok(state.volumes.get(&id).cloned())).boxed()
    }

    fn volume_named<'a>(&'a self, name: &'a str) -> Answer<'a, Option<CloudVolume>> {
        let named = move |state: &mut Truth| Ok(state.volumes.values().find(|volume| volume.name == name).cloned());
        self.0.call("cloud.volume-named", named).boxed()
    }

    fn volumes_of<'a>(&'a self, vm: &'a VmId) -> Answer<'a, Vec<CloudVolume>> {
        let of = move |state: &mut Truth| Ok(state.volumes.values().filter(|it| it.vm == Some(*vm)).cloned().collect());
        self.0.call("cloud.volumes-of", of).boxed()
    }

    fn vm<'a>(&'a self, id: &'a VmId) -> Answer<'a, Option<CloudVm>> {
        self.0.call("cloud.vm", move |state| Ok(state.vms.get(id).cloned())).boxed()
    }

    fn create<'a>(&'a self, job: JobId, what: &'a NewVolume) -> Answer<'a, Started> {
        let made = move |state: &mut Truth| {
            state.last_volume += 1;
            let new = CloudVolume {
                name: what.name.clone(),
                size_bytes: what.gib << 30,
                state: VolumeState::Allocated,
                ..volume(state.last_volume, None)
            };
            let id = new.id;
            // Made before it is refused, as CloudStack does.
            state.volumes.insert(id, new);
            let fails = self.0.trouble().jobs_fail.is_some();
            if fails {
                state.volumes.remove(&id);
            }
            self.0.begin(state, job, format!("create {}", what.gib), Some(id), |_| {}, |_| Ok(()))
        };
        self.0.call("cloud.create", made).boxed()
    }

    fn attach<'a>(&'a self, job: JobId, id: VolumeId, vm: &'a VmId, device_id: Option<u32>) -> Answer<'a, Started> {
        let vm = *vm;
        let attached = move |state: &mut Truth| {
            let guest = move |world: &World| {
                if vm == own() {
                    world.plug(id);
                }
            };
            let end = move |state: &mut Truth| match state.volumes.get_mut(&id) {
                Some(volume) if volume.vm.is_some() => Err("This volume is already attached to a VM."),
                Some(volume) => {
                    volume.vm = Some(vm);
                    volume.device_id = device_id.or(Some(4));
                    Ok(())
                }
                None => Err("Unable to find volume"),
            };
            self.0.begin(state, job, format!("attach {id} {vm} {device_id:?}"), Some(id), guest, end)
        };
        self.0.call("cloud.attach", attached).boxed()
    }

    fn detach(&self, job: JobId, id: VolumeId) -> Answer<'_, Started> {
        let detached = move |state: &mut Truth| {
            let had = state.volumes.get(&id).and_then(|volume| volume.vm);
            let guest = move |world: &World| {
                if had == Some(own()) {
                    world.unplug(id);
                }
            };
            let end = move |state: &mut Truth| match state.volumes.get_mut(&id) {
                Some(volume) if volume.vm.is_some() => {
                    (volume.vm, volume.device_id) = (None, None);
                    Ok(())
                }
                _ => Err("The specified volume is not attached to a VM."),
            };
            self.0.begin(state, job, format!("detach {id}"), Some(id), guest, end)
        };
        self.0.call("cloud.detach", detached).boxed()
    }

    fn delete(&self, id: VolumeId) -> Answer<'_, ()> {
        let deleted = move |state: &mut Truth| {
            state.log.push(format!("delete {id}"));
            match state.volumes.remove(&id) {
                Some(volume) if volume.vm.is_some() => {
                    state.volumes.insert(id, volume);
                    let words = "Please specify a volume that is not attached to any VM.";
                    Err(CallError::Refused(refusal(RefusalKind::Conflict, words)))
                }
                Some(_) => Ok(()),
                None => Err(CallError::Refused(refusal(RefusalKind::Gone, "Unable to find volume"))),
            }
        };
        self.0.call("cloud.delete", deleted).boxed()
    }

    fn job(&self, job: JobId) -> Answer<'_, Option<JobStatus>> {
        self.0.call("cloud.job", move |state| Ok(state.jobs.get(&job).cloned())).boxed()
    }

    fn stop_vm<'a>(&'a self, job: JobId, vm: &'a VmId, forced: bool) -> Answer<'a, Started> {
        let vm = *vm;
        let stopped = move |state: &mut Truth| {
            let end = move |state: &mut Truth| {
                state.vms.get_mut(&vm).ok_or("no such VM")?.state = VmState::Stopped;
                Ok(())
            };
            self.0.begin(state, job, format!("stop {vm} {forced}"), None, |_| {}, end)
        };
        self.0.call("cloud.stop-vm", stopped).boxed()
    }

    fn destroy_vm<'a>(&'a self, job: JobId, vm: &'a VmId) -> Answer<'a, Started> {
        let vm = *vm;
        let destroyed = move |state: &mut Truth| {
            let end = move |state: &mut Truth| {
                state.vms.remove(&vm);
                Ok(())
            };
            self.0.begin(state, job, format!("destroy {vm}"), None, |_| {}, end)
        };
        self.0.call("cloud.destroy-vm", destroyed).boxed()
    }
}

impl Double {
    async fn done<T>(
        &self,
        name: &str,
        change: impl FnOnce(&mut Truth) -> Result<T, Rejection>,
    ) -> Result<Result<T, Rejection>, Stopping> {
        self.0.point("before", name).await;
        let done = change(&mut self.0.state());
        self.0.point("after", name).await;
        Ok(done)
    }
}

impl Host for Double {
    fn look(&self, volume: VolumeId) -> BoxFuture<'_, Result<Option<Here>, Stopping>> {
        async move { Ok(self.0.state().here.get(&volume).cloned()) }.boxed()
    }

    fn intend(
        &self,
        intent: Intent,
        also: Vec<Change>,
    ) -> BoxFuture<'_, Result<Result<Recorded, Rejection>, Stopping>> {
        let id = intent.volume;
        let intended = self.done("host.intend", move |state| {
            if state.here.contains_key(&id) {
                return Ok(Recorded::Not);
            }
            let stands = if state.disks.contains(&id) { State::Ready } else { State::Attaching };
            state.here.insert(id, here(stands, intent.origin, id));
            state.write(also);
            Ok(Recorded::Together)
        });
        intended.boxed()
    }

    fn withdraw(&self, volume: VolumeId, _: User) -> BoxFuture<'_, Result<Result<(), Rejection>, Stopping>> {
        let withdrawn = self
            .done("host.withdraw", move |state| state.here.remove(&volume).map(drop).ok_or(Rejection::Unknown(volume)));
        withdrawn.boxed()
    }

    fn seal(
        &self,
        volume: VolumeId,
        operation: OperationId,
        force: bool,
        _: User,
    ) -> BoxFuture<'_, Result<Result<Flush, Rejection>, Stopping>> {
        let sealed = self.done("host.seal", move |state| {
            let clients: Vec<String> =
                state.clients.get(&volume).map(|_| "127.0.0.1:7".to_owned()).into_iter().collect();
            let clients = Holders { clients, exact: true };
            if !clients.clients.is_empty() && !force {
                return Err(Rejection::ClientsConnected { volume, clients });
            }
            let here = state.here.get_mut(&volume).ok_or(Rejection::Unknown(volume))?;
            here.state = State::Detaching;
            state.sealed.insert(volume, operation);
            Ok(Flush::Done)
        });
        sealed.boxed()
    }

    fn unseal(
        &self,
        volume: VolumeId,
        operation: OperationId,
        _: User,
    ) -> BoxFuture<'_, Result<Result<(), Rejection>, Stopping>> {
        let unsealed = self.done("host.unseal", move |state| {
            let disk = state.disks.contains(&volume);
            let here = state.here.get_mut(&volume).ok_or(Rejection::Unknown(volume))?;
            if state.sealed.remove(&volume).is_some_and(|by| by != operation) {
                return Err(Rejection::Leaving(volume));
            }
            here.state = if disk { State::Ready } else { State::Lost };
            Ok(())
        });
        unsealed.boxed()
    }

    fn release(
        &self,
        volume: VolumeId,
        operation: OperationId,
        _: User,
    ) -> BoxFuture<'_, Result<Result<(), Rejection>, Stopping>> {
        let released = self.done("host.release", move |state| {
            if !state.here.contains_key(&volume) {
                return Err(Rejection::Unknown(volume));
            }
            if state.sealed.get(&volume) != Some(&operation) {
                return Err(Rejection::NotSealed { volume, operation });
            }
            state.here.remove(&volume);
            state.sealed.remove(&volume);
            Ok(())
        });
        released.boxed()
    }

    fn listen(&self) -> Result<Listener, Stopping> {
        Ok(Listener(self.0.events.subscribe()))
    }
}

impl Records for Double {
    fn write(&self, changes: Vec<Change>) -> BoxFuture<'_, Result<(), StoreError>> {
        let written = async move {
            self.0.point("before", "record").await;
            self.0.state().write(changes);
            self.0.point("after", "record").await;
            Ok(())
        };
        written.boxed()
    }

    fn operation(&self, id: OperationId) -> BoxFuture<'_, Result<Option<Operation>, StoreError>> {
        async move { Ok(self.0.state().operations.get(&id).cloned()) }.boxed()
    }

    fn keyed(&self, uid: Option<u32>, key: IdempotencyKey) -> BoxFuture<'_, Result<Option<Operation>, StoreError>> {
        let keyed = async move {
            let state = self.0.state();
            let mut all = state.operations.values();
            Ok(all.find(|it| it.uid == uid && it.key.as_ref() == Some(&key)).cloned())
        };
        keyed.boxed()
    }

    fn list(&self, _: OperationFilter) -> BoxFuture<'_, Result<Vec<Operation>, StoreError>> {
        async move { Ok(self.0.state().operations.values().cloned().collect()) }.boxed()
    }
}
