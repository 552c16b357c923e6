//! Calls to CloudStack. Each runs beside the task of its operation, which goes on listening while CloudStack is silent.

use std::sync::Arc;

use tokio::task::JoinHandle;

use super::super::core::Core;
use super::super::facts::{Act, Look, Named};
use crate::clock::Steady;
use crate::cloud::{CallError, Cloud, CloudVm, CloudVolume, JobStatus, Started};
use crate::effect;

/// A call that has no answer yet. It is given up when this is dropped.
pub(in crate::operations) struct UnderWay {
    what: Asked,
    task: JoinHandle<(Steady, Answer)>,
}

/// What CloudStack was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::operations) enum Asked {
    /// A question, which changes nothing.
    Look(Look),
    /// A change.
    Act(Act),
}

/// What it has answered.
pub(super) enum Answer {
    Volume(Result<Option<CloudVolume>, CallError>),
    Named(Result<Named, CallError>),
    Vm(Result<Option<CloudVm>, CallError>),
    Job(Result<Option<JobStatus>, CallError>),
    /// To a change. The job, if the call has one.
    Changed(Result<Option<Started>, CallError>),
    /// To the deletion of a second volume of a create.
    StrayDeleted(Result<(), CallError>),
}

impl UnderWay {
    /// Begins a call.
    pub(in crate::operations) fn begin(core: &Arc<Core>, cloud: &Arc<dyn Cloud>, what: Asked) -> Self {
        let (core, cloud, asked) = (Arc::clone(core), Arc::clone(cloud), what.clone());
        let task = tokio::spawn(async move {
            let _permit = core.calls.acquire().await;
            let answer = match asked {
                Asked::Look(look) => answer_to(&*cloud, look).await,
                Asked::Act(act) => carried_out(&*cloud, act).await,
            };
            (core.tools.clock.steady(), answer)
        });
        Self { what, task }
    }

    /// Whether this is the question that is asked now.
    pub(super) fn is(&self, look: &Look) -> bool {
        matches!(&self.what, Asked::Look(asked) if asked == look)
    }

    /// Whether it changes something.
    pub(super) const fn changes(&self) -> bool {
        matches!(self.what, Asked::Act(_))
    }

    /// Returns the answer, and when it came. May be given up and asked for again.
    pub(super) async fn answered(&mut self) -> (Steady, Answer) {
        match (&mut self.task).await {
            Ok(answered) => answered,
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // Only the end of the runtime ends such a task.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer_to(cloud: &dyn Cloud, look: Look) -> Answer {
    match look {
        Look::Volume(id) => Answer::Volume(effect::at_all(&["cloud.volume"], cloud.volume(id)).await),
        Look::Named(name) => {
            let answer = effect::at_all(&["cloud.volume-named"], cloud.volume_named(&name)).await;
            Answer::Named(answer.map(|volume| Named { name, volume }))
        }
        Look::Vm(id) => Answer::Vm(effect::at_all(&["cloud.vm"], cloud.vm(&id)).await),
        Look::Job(id) => Answer::Job(effect::at_all(&["cloud.job"], cloud.job(id)).await),
    }
}

async fn carried_out(cloud: &dyn Cloud, act: Act) -> Answer {
    let started = match act {
        Act::Create { job, what } => effect::at_all(&["cloud.create"], cloud.create(job, &what)).await,
        Act::Attach { job, volume, vm, root } => {
            effect::at_all(&["cloud.attach"], cloud.attach(job, volume, &vm, root.then_some(0))).await
        }
        Act::Detach { job, volume } => effect::at_all(&["cloud.detach"], cloud.detach(job, volume)).await,
        Act::StopVm { job, vm, force } => effect::at_all(&["cloud.stop-vm"], cloud.stop_vm(job, &vm, force)).await,
        Act::DestroyVm { job, vm } => effect::at_all(&["cloud.destroy-vm"], cloud.destroy_vm(job, &vm)).await,
        Act::Delete(volume) => {
            let deleted = effect::at_all(&["cloud.delete"], cloud.delete(volume)).await;
            return Answer::Changed(deleted.map(|()| None));
        }
        Act::DeleteStray(volume) => {
            return Answer::StrayDeleted(effect::at_all(&["cloud.delete"], cloud.delete(volume)).await);
        }
    };
    Answer::Changed(started.map(Some))
}
