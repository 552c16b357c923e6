//! The task of one operation: gathers what is known, asks what is next, does it, and puts on record what has to be there.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use tokio::time::sleep;

use super::Inner;
use super::facts::{Act, Call, End, Facts, Look, Named, Next, Placed, Seen};
use super::registry::Entry;
use super::tools::{Listener, new_id};
use super::{faults, next};
use crate::clock::Steady;
use crate::cloud::{CallError, Cloud, CloudVm, CloudVolume, JobStatus, Sent, Started};
use crate::effect;
use crate::engine::{Rejection, Stopping};
use crate::identity::{JobId, OperationId, VolumeId};
use crate::operation::{Fault, Flush, Operation, OperationState, Placeholder, Progress};
use crate::reason::StoryStep;
use crate::store::{Change, News, StoreError};
use crate::volume::{Entry as Told, Intent, IntentOrigin, State, User};

/// First and longest wait before CloudStack is asked again that could not be.
const AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// First and longest wait before something is put on record again that could not be.
const RECORD_AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The longest wait between two looks whether the clients of a volume are gone. No event tells of that.
const LOOK_FOR_CLIENTS: Duration = Duration::from_secs(2);

/// How long a call without an answer is given to be carried out, before CloudStack is asked what has come of it.
const UNCLEAR: Duration = Duration::from_millis(200);

/// Carries an operation on until nothing of it is still to come. `resumed`: it was under way before a start.
pub(super) async fn run(inner: Arc<Inner>, id: OperationId, resumed: bool) {
    let mut resumed = resumed;
    loop {
        let Some(entry) = inner.registry().entry(id) else { return };
        let (tools, operation) = (Arc::clone(&inner), (*entry.operation()).clone());
        let step = tokio::spawn(async move {
            let Some(cloud) = tools.tools.cloud.clone() else { return Ok(()) };
            let listener = tools.tools.host.listen()?;
            let state = Known::at(resumed, tools.tools.clock.steady());
            Drive { inner: tools, entry, cloud, operation, known: state, listener }.drive().await
        });
        // Should this one be given up, that one is, too.
        let guard = AbortOnDrop(step.abort_handle());
        let ended = step.await;
        drop(guard);
        match ended {
            Err(died) if died.is_panic() => {
                tracing::error!(OPERATION_ID = %id, "a step of the operation has panicked; it is tried again");
                resumed = true;
                sleep(RECORD_AGAIN.1).await;
            }
            // The daemon is stopping: the next start goes on.
            Ok(_) | Err(_) => return,
        }
    }
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Drive {
    inner: Arc<Inner>,
    entry: Arc<Entry>,
    cloud: Arc<dyn Cloud>,
    /// As it is on record.
    operation: Operation,
    known: Known,
    listener: Listener,
}

/// What was learnt since the last step, and what of it still holds.
struct Known {
    volume: Seen<Option<CloudVolume>>,
    named: Seen<Named>,
    vm: Seen<Option<CloudVm>>,
    job: Seen<Option<JobStatus>>,
    polls: u32,
    call: Call,
    call_at: Steady,
    /// How often in a row CloudStack could not be asked.
    failures: u32,
    done: Option<Result<(), Fault>>,
    again: Option<Steady>,
    tries: u32,
    refused_since: Option<Steady>,
    flush: Option<Flush>,
}

impl Known {
    fn at(resumed: bool, now: Steady) -> Self {
        Self {
            volume: Seen::NotAsked,
            named: Seen::NotAsked,
            vm: Seen::NotAsked,
            job: Seen::NotAsked,
            polls: 0,
            call: if resumed { Call::Unknown } else { Call::NotMade },
            call_at: now,
            failures: 0,
            done: None,
            again: None,
            tries: 0,
            refused_since: None,
            flush: None,
        }
    }

    /// Something was done that may have changed what CloudStack shows.
    fn distrust(&mut self) {
        (self.volume, self.vm, self.named) = (Seen::NotAsked, Seen::NotAsked, Seen::NotAsked);
    }

    /// Another step begins, with no call made.
    fn step(&mut self, now: Steady) {
        (self.job, self.polls, self.call, self.call_at) = (Seen::NotAsked, 0, Call::NotMade, now);
    }

    /// How long is waited now that it could not be asked.
    fn pause(&mut self, why: &CallError) -> SignedDuration {
        self.failures += 1;
        let usual = (AGAIN.0 * (1 << (self.failures - 1).min(10))).min(AGAIN.1);
        let pause = match why {
            CallError::Throttled { after } => (*after).max(AGAIN.0),
            _ => usual,
        };
        SignedDuration::try_from(pause).unwrap_or(SignedDuration::from_secs(15))
    }

    fn seen<T>(&mut self, answer: Result<T, CallError>, now: Steady) -> Seen<T> {
        match answer {
            Ok(answer) => {
                self.failures = 0;
                Seen::At(now, answer)
            }
            Err(why) => {
                let again = now.after(self.pause(&why));
                Seen::Failed { why, again }
            }
        }
    }
}

impl Drive {
    async fn drive(mut self) -> Result<(), Stopping> {
        loop {
            let facts = self.gather().await?;
            match next::next(&self.operation, &facts) {
                Next::Look(look) => self.look(look).await,
                Next::Act(act) => self.act(act).await?,
                Next::Wait(until) => self.wait(until).await?,
                Next::Record(progress, volume) => self.go_on(*progress, volume).await?,
                Next::End(end) => self.end(*end).await?,
                Next::Settled => return self.settled().await,
            }
        }
    }

    fn now(&self) -> Steady {
        self.inner.tools.clock.steady()
    }

    async fn gather(&mut self) -> Result<Facts, Stopping> {
        let here = match self.operation.volume {
            Some(volume) => self.inner.tools.host.look(volume).await?,
            None => None,
        };
        let own_vm = self.inner.tools.own_vm.find().await;
        let now = self.now();
        let refused = here.as_ref().is_some_and(|here| here.state == State::Refused);
        self.known.refused_since = refused.then(|| self.known.refused_since.unwrap_or(now));
        let registry = self.inner.registry();
        let known = &self.known;
        Ok(Facts {
            now,
            own_vm,
            waits_for: registry.before(&self.operation),
            called_off: self.entry.is_called_off(),
            new_job: JobId::from(new_id()),
            volume: known.volume.clone(),
            named: known.named.clone(),
            vm: known.vm.clone(),
            job: known.job.clone(),
            polls: known.polls,
            call: known.call.clone(),
            call_at: known.call_at,
            done: known.done.clone(),
            again: known.again,
            here,
            refused_since: known.refused_since,
            placeholder: self.operation.volume.and_then(|volume| registry.placeholder(volume)).map(|at| at.vm),
        })
    }

    /// Until then, or until something has happened that may matter.
    async fn wait(&mut self, until: Option<Steady>) -> Result<(), Stopping> {
        let deadline = (!self.operation.state.is_ended()).then_some(self.operation.deadline);
        // After its end nothing is waited for without a limit.
        let until = [until, deadline].into_iter().flatten().min();
        let left = until.map(|until| until.left(self.inner.tools.clock.steady()));
        let timer = async {
            match left {
                Some(left) => sleep(left).await,
                None => std::future::pending().await,
            }
        };
        let volume = self.operation.volume;
        let listener = &mut self.listener;
        let heard = async {
            match volume {
                Some(volume) => listener.heard(volume).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = timer => Ok(()),
            () = self.entry.wake.notified() => Ok(()),
            heard = heard => heard,
        }
    }

    async fn look(&mut self, look: Look) {
        let cloud = Arc::clone(&self.cloud);
        let turn = self.inner.calls.acquire().await;
        match look {
            Look::Volume(id) => {
                let answer = effect::at_all(&["cloud.volume"], cloud.volume(id)).await;
                self.known.volume = self.known.seen(answer, self.inner.tools.clock.steady());
            }
            Look::Named(name) => {
                let answer = effect::at_all(&["cloud.volume-named"], cloud.volume_named(&name)).await;
                let answer = answer.map(|volume| Named { name, volume });
                self.known.named = self.known.seen(answer, self.inner.tools.clock.steady());
            }
            Look::Vm(id) => {
                let answer = effect::at_all(&["cloud.vm"], cloud.vm(&id)).await;
                self.known.vm = self.known.seen(answer, self.inner.tools.clock.steady());
            }
            Look::Job(id) => {
                let answer = effect::at_all(&["cloud.job"], cloud.job(id)).await;
                let runs = matches!(answer, Ok(Some(JobStatus::Running)));
                if !runs && answer.is_ok() {
                    self.known.distrust();
                }
                self.known.polls += 1;
                self.known.job = self.known.seen(answer, self.inner.tools.clock.steady());
            }
        }
        drop(turn);
    }

    async fn act(&mut self, act: Act) -> Result<(), Stopping> {
        let cloud = Arc::clone(&self.cloud);
        let called = |started: Result<Started, CallError>| started.map(|started| started.volume);
        let turn = self.inner.calls.clone();
        let turn = turn.acquire().await;
        let answer = match act {
            Act::Create { job, what } => called(effect::at_all(&["cloud.create"], cloud.create(job, &what)).await),
            Act::Attach { job, volume, vm, root } => {
                let device = root.then_some(0);
                called(effect::at_all(&["cloud.attach"], cloud.attach(job, volume, &vm, device)).await)
            }
            Act::Detach { job, volume } => called(effect::at_all(&["cloud.detach"], cloud.detach(job, volume)).await),
            Act::StopVm { job, vm, force } => {
                called(effect::at_all(&["cloud.stop-vm"], cloud.stop_vm(job, &vm, force)).await)
            }
            Act::DestroyVm { job, vm } => {
                called(effect::at_all(&["cloud.destroy-vm"], cloud.destroy_vm(job, &vm)).await)
            }
            Act::Delete(volume) => effect::at_all(&["cloud.delete"], cloud.delete(volume)).await.map(|()| None),
            Act::DeleteStray(volume) => {
                let answer = effect::at_all(&["cloud.delete"], cloud.delete(volume)).await;
                drop(turn);
                self.known.named = match answer {
                    Ok(()) => Seen::NotAsked,
                    Err(why) => {
                        let again = self.now().after(self.known.pause(&why));
                        Seen::Failed { why, again }
                    }
                };
                return Ok(());
            }
            Act::Intend(_) | Act::Withdraw(_) | Act::Seal { .. } | Act::Unseal(_) | Act::Release(_) => {
                drop(turn);
                return self.act_here(act).await;
            }
        };
        drop(turn);
        let now = self.now();
        self.known.distrust();
        (self.known.job, self.known.polls, self.known.call_at) = (Seen::NotAsked, 0, now);
        self.known.call = match answer {
            Ok(volume) => {
                self.known.failures = 0;
                Call::Taken(volume)
            }
            Err(why) => {
                let (id, step) = (self.operation.id, self.operation.progress.step.name());
                tracing::warn!(OPERATION_ID = %id, step, "a call of CloudStack has failed: {why}");
                let pause = self.known.pause(&why);
                match why {
                    CallError::Refused(refusal) => Call::Refused(refusal),
                    CallError::Unreachable { sent: Sent::Unclear, .. } | CallError::NotUnderstood { .. } => {
                        let again = now.after(SignedDuration::try_from(UNCLEAR).unwrap_or(pause));
                        Call::Unclear { why, again }
                    }
                    why => Call::NotTaken { why, again: now.after(pause) },
                }
            }
        };
        Ok(())
    }

    async fn act_here(&mut self, act: Act) -> Result<(), Stopping> {
        let host = Arc::clone(&self.inner.tools.host);
        let (id, user) = (self.operation.id, User(self.operation.uid));
        let seals = matches!(act, Act::Seal { .. });
        let answer = match act {
            Act::Intend(volume) => {
                // Should that not be known just now, the engine's own setting stands for it.
                let vm_id = self.inner.tools.own_vm.find().await.map(|vm| vm.to_string()).unwrap_or_default();
                host.intend(self.intent(volume, vm_id)).await?
            }
            Act::Withdraw(volume) => host.withdraw(volume, user).await?,
            Act::Seal { volume, force } => {
                let sealed = host.seal(volume, id, force, user).await?;
                sealed.map(|flush| self.known.flush = Some(flush))
            }
            Act::Unseal(volume) => host.unseal(volume, id, user).await?,
            Act::Release(volume) => host.release(volume, id, user).await?,
            _ => Ok(()),
        };
        let progress = &self.operation.progress;
        // What is given back, or gone already, is seen through; else whoever asked hears why not.
        let insists = progress.given_up.is_some() || progress.step == crate::operation::Step::Release;
        let wait = SignedDuration::from_secs(self.operation.request.client_wait_seconds().into());
        let (now, waits_until) = (self.now(), self.known.call_at.after(wait));
        let mut pause = |longest| {
            self.known.tries += 1;
            let pause = (RECORD_AGAIN.0 * (1 << self.known.tries.min(10))).min(longest);
            SignedDuration::try_from(pause).ok().map(|pause| now.after(pause))
        };
        self.known.again = match &answer {
            Err(rejection) if insists && faults::passes(rejection) => pause(RECORD_AGAIN.1),
            Err(rejection) if seals && faults::is_of_clients(rejection) && now < waits_until => {
                pause(LOOK_FOR_CLIENTS).map(|again| again.min(waits_until))
            }
            _ => None,
        };
        self.known.done = Some(answer.map_err(|rejection: Rejection| faults::of(&rejection)));
        Ok(())
    }

    fn intent(&self, volume: VolumeId, vm_id: String) -> Intent {
        Intent {
            volume,
            vm_id,
            size_bytes: None,
            deadline_seconds: None,
            deadline: None,
            created_at: self.inner.tools.clock.wall(),
            uid: self.operation.uid,
            origin: IntentOrigin::Operation(self.operation.id),
        }
    }

    /// Puts the next step on record.
    async fn go_on(&mut self, progress: Progress, volume: Option<VolumeId>) -> Result<(), Stopping> {
        let before = self.operation.clone();
        let ended = before.state.is_ended();
        let state = if ended { before.state } else { OperationState::Executing };
        let same =
            progress.step.name() == before.progress.step.name() && progress.step.job() == before.progress.step.job();
        let flush = progress.flush.clone().or_else(|| self.known.flush.clone());
        let vm = before.vm.or(progress.vm);
        let progress = Progress { unsettled: ended, flush, ..progress };
        let operation = Operation { state, progress, vm, volume: volume.or(before.volume), ..before };
        self.put(operation, None).await?;
        if !same {
            let now = self.now();
            self.known.step(now);
        }
        (self.known.done, self.known.again, self.known.tries) = (None, None, 0);
        Ok(())
    }

    async fn end(&mut self, end: End) -> Result<(), Stopping> {
        let End { state, fault, response, placed, unsettled } = end;
        let volume = response.as_ref().and_then(|response| response.volume_id).or(self.operation.volume);
        let before = self.operation.clone();
        let progress = Progress { unsettled, ..before.progress.clone() };
        let now = self.inner.tools.clock.wall();
        let operation = Operation { state, progress, fault, response, volume, completed_at: Some(now), ..before };
        let placed = volume.map(|volume| (volume, placed));
        self.put(operation, placed).await
    }

    async fn settled(mut self) -> Result<(), Stopping> {
        if self.operation.progress.unsettled {
            let before = self.operation.clone();
            let progress = Progress { unsettled: false, ..before.progress.clone() };
            let placed = match (&self.known.volume, self.operation.volume) {
                (Seen::At(_, cloud), Some(volume)) => {
                    let placeholder = self.inner.registry().placeholder(volume).map(|placeholder| placeholder.vm);
                    let has = cloud.as_ref().and_then(|cloud| cloud.vm);
                    (placeholder.is_some() && placeholder != has).then_some((volume, Placed::Nowhere))
                }
                _ => None,
            };
            self.put(Operation { progress, ..before }, placed).await?;
        }
        self.inner.registry().remove(&self.operation);
        Ok(())
    }

    /// Puts the operation on record as it is to be, with where its volume is, and tells of it. As long as that takes.
    async fn put(&mut self, operation: Operation, placed: Option<(VolumeId, Placed)>) -> Result<(), Stopping> {
        let now = self.inner.tools.clock.wall();
        let operation = Operation { updated_at: now, ..operation };
        let placeholder = placed.and_then(|(volume, placed)| match placed {
            Placed::AsBefore => None,
            Placed::At { vm, root } => {
                Some((volume, Some(Placeholder { volume, vm, root, operation: operation.id, since: now })))
            }
            Placed::Nowhere => self.inner.registry().placeholder(volume).is_some().then_some((volume, None)),
        });
        let mut changes = vec![Change::Operation(Box::new(operation.clone()))];
        changes.extend(placeholder.clone().map(|(volume, placeholder)| match placeholder {
            Some(placeholder) => Change::Place(placeholder),
            None => Change::Displace(volume),
        }));
        let told = told(&self.operation, &operation);
        if let (Some((step, detail)), Some(volume)) = (&told, operation.volume) {
            let entry = Told { at: now, event: (*step).into(), detail: detail.clone() };
            changes.push(Change::News(volume, News::Note(entry)));
        }
        let mut tries = 0;
        loop {
            match self.inner.tools.records.write(changes.clone()).await {
                Ok(()) => break,
                Err(StoreError::Closed) => return Err(Stopping),
                // The store says so itself, and health does.
                Err(error) => {
                    if tries == 0 {
                        tracing::warn!(OPERATION_ID = %operation.id, "the operation waits for the store: {error}");
                    }
                    sleep((RECORD_AGAIN.0 * (1 << u32::min(tries, 10))).min(RECORD_AGAIN.1)).await;
                    tries += 1;
                }
            }
        }
        let mut registry = self.inner.registry();
        if let Some((volume, placeholder)) = placeholder {
            registry.place(volume, placeholder);
        }
        if self.operation.volume.is_none() {
            registry.volume_known(&operation);
        }
        drop(registry);
        if let Some((step, detail)) = told {
            let volume = operation.volume.map(|volume| volume.to_string());
            let kind = operation.request.kind();
            match step.severity(false) {
                crate::reason::Severity::Info => {
                    tracing::info!(EVENT = step.name(), OPERATION_ID = %operation.id, VOLUME_ID = volume, "{kind}: {detail}");
                }
                _ => {
                    tracing::warn!(EVENT = step.name(), OPERATION_ID = %operation.id, VOLUME_ID = volume, "{kind}: {detail}");
                }
            }
        }
        self.operation = operation.clone();
        self.entry.publish(operation);
        self.inner.tell(&self.entry);
        Ok(())
    }
}

/// What is told of a change of an operation.
fn told(before: &Operation, now: &Operation) -> Option<(StoryStep, String)> {
    let (id, kind) = (now.id, now.request.kind());
    if before.state != now.state && now.state.is_ended() {
        return Some(match (now.state, &now.fault) {
            (OperationState::Completed, _) => {
                let adopted = if now.progress.adopted { ", it was so already" } else { "" };
                (StoryStep::OperationDone, format!("{kind} {id}{adopted}"))
            }
            (OperationState::Cancelled, _) => (StoryStep::OperationCancelled, format!("{kind} {id}")),
            (_, fault) => {
                let why = fault.as_ref().map(ToString::to_string).unwrap_or_default();
                (StoryStep::OperationFailed, format!("{kind} {id}: {why}"))
            }
        });
    }
    let (step, was) = (&now.progress.step, &before.progress.step);
    if step == was && now.progress.given_up == before.progress.given_up {
        return None;
    }
    let job = step.job().map(|job| format!(", job {job}")).unwrap_or_default();
    let back = if now.progress.given_up.is_some() { " (taking back what was begun)" } else { "" };
    Some((StoryStep::OperationStep, format!("{kind} {id}: {}{job}{back}", step.name())))
}
