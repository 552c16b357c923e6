//! The task of one operation. It gathers the facts, asks [`next::next`] what is next, does it, and begins again.
//!
//! [`cloud`] makes the calls to CloudStack, beside the task; [`here`] does what is done on this host; [`record`] puts the steps
//! and the end on record. [`known`] has what was learnt. While a call is under way the task goes on listening, so that it
//! notices when the volume is served, cancelled, or out of time.

mod calls;
mod cloud;
mod core;
mod here;
mod known;
mod record;

use std::sync::Arc;

use tokio::task::AbortHandle;
use tokio::time::sleep;

use self::core::Drive;
pub(super) use calls::{Asked, UnderWay};
use known::{HERE_AGAIN, Known};

use super::core::Core;
use super::facts::{Facts, Next};
use super::next;
use super::tools::new_id;
use crate::clock::Steady;
use crate::engine::Stopping;
use crate::identity::{JobId, OperationId};
use crate::volume::State;

/// Carries an operation out until nothing more will come of it. `resumed`: it was open before a start of attachd. `call`: the
/// question that it begins with, which is asked already.
pub(super) async fn run(core: Arc<Core>, id: OperationId, mut resumed: bool, mut call: Option<UnderWay>) {
    loop {
        let Some(entry) = core.registry().entry(id) else { return };
        let (own, operation, call) = (Arc::clone(&core), (*entry.operation()).clone(), call.take());
        let task = tokio::spawn(async move {
            let Some(cloud) = own.tools.cloud.clone() else { return Ok(()) };
            let listener = own.tools.host.listen()?;
            let known = Known::new(resumed, own.tools.clock.steady());
            Drive { core: own, entry, cloud, operation, known, call, listener }.drive().await
        });
        // When this task is ended, so is that one.
        let guard = AbortOnDrop(task.abort_handle());
        let ended = task.await;
        drop(guard);
        match ended {
            Err(died) if died.is_panic() => {
                tracing::error!(OPERATION_ID = %id, "a step of the operation has panicked; it is tried again");
                resumed = true;
                sleep(HERE_AGAIN.1).await;
            }
            // The daemon stops. The next start goes on.
            Ok(_) | Err(_) => return,
        }
    }
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Drive {
    async fn drive(mut self) -> Result<(), Stopping> {
        loop {
            let facts = self.gather().await?;
            self.show(&facts);
            match next::next(&self.operation, &facts) {
                Next::Look(look) => {
                    self.look(look);
                    self.wait(None).await?;
                }
                Next::Act(act) => {
                    self.change(act);
                    self.wait(None).await?;
                }
                Next::Here(act) => self.act_here(act).await?,
                Next::Wait(until) => self.wait(until).await?,
                Next::Record(progress, volume) => self.go_on(*progress, volume).await?,
                Next::Intend(volume, progress) => self.intend(volume, *progress).await?,
                Next::End(end) => self.end(*end).await?,
                Next::Settled => return self.settled().await,
            }
        }
    }

    async fn gather(&mut self) -> Result<Facts, Stopping> {
        let here = match self.operation.volume {
            Some(volume) => self.core.tools.host.look(volume).await?,
            None => None,
        };
        let own_vm = self.own_vm().await;
        let now = self.now();
        let refused = here.as_ref().is_some_and(|here| here.state == State::Refused);
        self.known.refused_since = refused.then(|| self.known.refused_since.unwrap_or(now));
        let registry = self.core.registry();
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

    /// Shows callers whether CloudStack has attached the volume, which is not on record.
    fn show(&self, facts: &Facts) {
        let attached = next::is_attached_here(&self.operation, facts);
        if self.entry.attached(attached.then(|| self.core.tools.clock.wall())) {
            self.core.tell(&self.entry);
        }
    }

    /// Waits until that moment, or until something happens that may matter: an answer of CloudStack, an event of the volume,
    /// a cancellation, the turn of this operation, the end of its time.
    async fn wait(&mut self, until: Option<Steady>) -> Result<(), Stopping> {
        let now = self.now();
        let ends = [self.operation.deadline, self.operation.deadline.after(next::LAST_QUESTION)];
        let ends = ends.into_iter().filter(|end| !self.operation.state.is_ended() && *end > now);
        let left = ends.chain(until).min().map(|until| until.left(now));
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
        let call = &mut self.call;
        let answered = async {
            match call {
                Some(call) => call.answered().await,
                None => std::future::pending().await,
            }
        };
        let (at, answer) = tokio::select! {
            answered = answered => answered,
            () = timer => return Ok(()),
            () = self.entry.wake.notified() => return Ok(()),
            heard = heard => return heard,
        };
        self.take(at, answer);
        Ok(())
    }
}
