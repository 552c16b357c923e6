//! What the task of an operation has learnt from CloudStack and from this host, as far as it may still be used.

use std::time::Duration;

use jiff::SignedDuration;

use super::super::facts::{Call, Named, Seen};
use crate::clock::Steady;
use crate::cloud::{CallError, CloudVm, CloudVolume, JobStatus, Sent, Started};
use crate::operation::{Fault, Flush};

/// The first and the longest pause before CloudStack is asked again after a failed call.
const AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// The pause after a call without an answer. CloudStack may still carry it out; after the pause it is asked.
const UNCLEAR: Duration = Duration::from_millis(200);

/// The first and the longest pause before something that failed on this host is tried again.
pub(super) const HERE_AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The answers of CloudStack, and the results of what was done on this host in the present step.
pub(super) struct Known {
    pub(super) volume: Seen<Option<CloudVolume>>,
    pub(super) named: Seen<Named>,
    pub(super) vm: Seen<Option<CloudVm>>,
    pub(super) job: Seen<Option<JobStatus>>,
    /// How often the job was asked for.
    pub(super) polls: u32,
    /// The call of the present step that changes something in CloudStack.
    pub(super) call: Call,
    /// When `call` last changed.
    pub(super) call_at: Steady,
    /// The number of failed calls since the last success.
    failures: u32,
    /// The result of what was done on this host.
    pub(super) done: Option<Result<(), Fault>>,
    /// When that is tried again.
    pub(super) again: Option<Steady>,
    /// How often it has failed.
    tries: u32,
    /// Since when the volume's disk is refused.
    pub(super) refused_since: Option<Steady>,
    /// Whether the clients' writes were flushed when the volume was sealed.
    pub(super) flush: Option<Flush>,
}

impl Known {
    /// Nothing is known yet. `resumed`: the operation was open before a start of attachd, so the call of its step may have been
    /// made.
    pub(super) fn new(resumed: bool, now: Steady) -> Self {
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

    /// Drops what CloudStack has shown, because it may be different now.
    pub(super) fn forget_shown(&mut self) {
        (self.volume, self.vm, self.named) = (Seen::NotAsked, Seen::NotAsked, Seen::NotAsked);
    }

    /// Another step begins. Its call was not made yet.
    pub(super) fn begin_step(&mut self, now: Steady) {
        (self.job, self.polls, self.call, self.call_at) = (Seen::NotAsked, 0, Call::NotMade, now);
    }

    /// The step on record has changed, or its call: what was done on this host is to be done anew.
    pub(super) fn nothing_done(&mut self) {
        (self.done, self.again, self.tries) = (None, None, 0);
    }

    /// A call that changes something in CloudStack is being made.
    pub(super) fn call_begins(&mut self, now: Steady) {
        self.forget_shown();
        (self.job, self.polls, self.call, self.call_at) = (Seen::NotAsked, 0, Call::UnderWay, now);
    }

    /// Such a call has ended.
    pub(super) fn call_ended(&mut self, answer: Result<Option<Started>, CallError>, now: Steady) {
        self.forget_shown();
        self.call_at = now;
        self.call = match answer {
            Ok(started) => {
                self.failures = 0;
                Call::Taken { job: started.map(|started| started.job), volume: started.and_then(|it| it.volume) }
            }
            Err(why) => {
                let pause = self.pause(&why);
                match why {
                    CallError::Refused(refusal) => Call::Refused(refusal),
                    CallError::Unreachable { sent: Sent::Unclear, .. } | CallError::NotUnderstood { .. } => {
                        Call::Unclear { why, again: now.after(signed(UNCLEAR)) }
                    }
                    why => Call::NotTaken { why, again: now.after(pause) },
                }
            }
        };
    }

    /// Returns what an answer has shown.
    pub(super) fn seen<T>(&mut self, answer: Result<T, CallError>, now: Steady) -> Seen<T> {
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

    /// Returns the pause after a failed call.
    fn pause(&mut self, why: &CallError) -> SignedDuration {
        self.failures += 1;
        let usual = doubled(AGAIN, self.failures - 1);
        signed(match why {
            CallError::Throttled { after } => (*after).max(AGAIN.0),
            _ => usual,
        })
    }

    /// Something failed on this host. Returns the pause before it is tried again, which only grows up to
    /// `longest`.
    pub(super) fn failed_here(&mut self, longest: Duration) -> SignedDuration {
        self.tries += 1;
        signed(doubled((HERE_AGAIN.0, longest), self.tries))
    }
}

/// Returns the first pause, doubled so many times, up to the longest.
pub(super) fn doubled((first, longest): (Duration, Duration), times: u32) -> Duration {
    (first * (1 << times.min(10))).min(longest)
}

fn signed(pause: Duration) -> SignedDuration {
    SignedDuration::try_from(pause).unwrap_or(SignedDuration::from_secs(15))
}
