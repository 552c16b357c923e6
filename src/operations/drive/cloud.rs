//! Begins the calls to CloudStack that [`super::super::next`] asks for, and takes their answers. At most one call of an
//! operation is under way.

use super::super::facts::{Act, Look, Seen};
use super::calls::{Answer, Asked, UnderWay};
use super::core::Drive;
use crate::clock::Steady;
use crate::cloud::{CallError, JobStatus, RefusalKind};

impl Drive {
    /// Asks CloudStack something, unless that is being asked. A call that changes something is ended first.
    pub(super) fn look(&mut self, look: Look) {
        if self.call.as_ref().is_none_or(|call| !call.changes() && !call.is(&look)) {
            self.call = Some(UnderWay::begin(&self.core, &self.cloud, Asked::Look(look)));
        }
    }

    /// Has CloudStack change something, unless it is changing something. A question that has no answer yet is dropped: its
    /// answer would be of the time before.
    pub(super) fn change(&mut self, act: Act) {
        if self.call.as_ref().is_some_and(UnderWay::changes) {
            return;
        }
        if !matches!(act, Act::DeleteStray(_)) {
            self.known.call_begins(self.now());
        }
        self.call = Some(UnderWay::begin(&self.core, &self.cloud, Asked::Act(act)));
    }

    /// Takes the answer to the call that was under way.
    pub(super) fn take(&mut self, now: Steady, answer: Answer) {
        self.call = None;
        match answer {
            Answer::Volume(answer) => self.known.volume = self.known.seen(answer, now),
            Answer::Named(answer) => self.known.named = self.known.seen(answer, now),
            Answer::Vm(answer) => self.known.vm = self.known.seen(answer, now),
            Answer::Job(answer) => {
                let runs = matches!(answer, Ok(Some(JobStatus::Running)));
                if !runs && answer.is_ok() {
                    self.known.forget_shown();
                }
                self.known.polls += 1;
                self.known.job = self.known.seen(answer, now);
            }
            Answer::Changed(answer) => {
                if let Err(why) = &answer {
                    let (id, step) = (self.operation.id, self.operation.progress.step.name());
                    tracing::warn!(OPERATION_ID = %id, step, "a call to CloudStack has failed: {why}");
                    if matches!(why, CallError::Refused(refusal) if refusal.kind == RefusalKind::Gone) {
                        // It may be the VM that CloudStack does not know any more.
                        self.core.tools.own_vm.doubt();
                    }
                }
                self.known.call_ended(answer, now);
            }
            Answer::StrayDeleted(Ok(())) => self.known.named = Seen::NotAsked,
            Answer::StrayDeleted(Err(why)) => self.known.named = self.known.seen(Err(why), now),
        }
    }
}
