//! What goes wrong, and when: said by the test beforehand.

use crate::answer::{Answer, Refusal};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What happens to a call.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It is carried out, and answered so much later.
    Takes(Duration),
    /// It is carried out only when the gate opens.
    Held(Gate),
    /// It is carried out, and answered when the gate opens.
    AnswerHeld(Gate),
    /// The connection is closed before it is carried out.
    CutBefore,
    /// It is carried out, and the connection closed without an answer.
    CutAfter,
    /// It is carried out, and half of the answer is sent.
    CutInAnswer,
    /// The connection is reset before it is carried out.
    ResetBefore,
    /// It is carried out, and the connection reset without an answer.
    ResetAfter,
    /// Somebody in between answers in place of the server, which never hears of it.
    Instead(Answer),
    /// It is carried out, and somebody in between answers in place of the server.
    InsteadAfter(Answer),
    /// The server refuses.
    Refused(Refusal),
}

/// What happens to a job.
#[derive(Debug, Clone)]
pub enum JobFault {
    /// It takes so much longer.
    Takes(Duration),
    /// It begins when the gate opens.
    Held(Gate),
    /// It is done, and says so only so much later: the guest knows of its disk before the caller hears of it.
    SaysLater(Duration),
    /// It fails, and nothing was done.
    Fails(Refusal),
    /// It is done, and the job says that it failed.
    FailsAfter(Refusal),
    /// It is cancelled, and nothing was done.
    Cancelled,
    /// It is done, and the job says that it was cancelled.
    CancelledAfter,
    /// It says at once that it was cancelled, and is carried out nevertheless when the gate opens, on whatever is there then.
    Straggles(Gate),
    /// Attaching only: the job says that it succeeded, and the disk comes when the gate opens.
    DiskLater(Gate),
    /// Detaching only: the guest does not let go of the disk.
    NotLetGo,
    /// It is done, and nobody remembers the job.
    Forgotten,
}

/// A place where somebody waits until the test lets everybody through.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Debug, Default)]
struct GateState {
    open: bool,
    came: usize,
}

impl Gate {
    /// A closed one.
    pub fn new() -> Gate {
        Gate::default()
    }

    /// Lets through who waits and who comes later.
    pub fn open(&self) {
        self.state().open = true;
        self.0.1.notify_all();
    }

    /// Waits until so many have come to it; false: they have not within the limit.
    pub fn reached_by(&self, count: usize, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.state();
        while state.came < count {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.0.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Waits until somebody has come to it.
    pub fn reached(&self, limit: Duration) -> bool {
        self.reached_by(1, limit)
    }

    pub(crate) fn pass(&self) {
        let mut state = self.state();
        state.came += 1;
        self.0.1.notify_all();
        while !state.open {
            state = self.0.1.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn state(&self) -> MutexGuard<'_, GateState> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everything that was said and has not happened yet.
#[derive(Debug, Default)]
pub(crate) struct Script {
    next: BTreeMap<String, VecDeque<Fault>>,
    next_job: BTreeMap<String, VecDeque<JobFault>>,
    each: BTreeMap<String, Fault>,
    by_number: BTreeMap<u64, Fault>,
}

impl Script {
    pub(crate) fn next(&mut self, command: &str, fault: Fault) {
        self.next.entry(command.to_owned()).or_default().push_back(fault);
    }

    pub(crate) fn next_job(&mut self, command: &str, fault: JobFault) {
        self.next_job.entry(command.to_owned()).or_default().push_back(fault);
    }

    pub(crate) fn each(&mut self, command: &str, fault: Fault) {
        self.each.insert(command.to_owned(), fault);
    }

    pub(crate) fn by_number(&mut self, number: u64, fault: Fault) {
        self.by_number.insert(number, fault);
    }

    /// What happens to this call. `*` is any command.
    pub(crate) fn of_call(&mut self, number: u64, command: &str) -> Option<Fault> {
        let once = [command, "*"].into_iter().find_map(|name| self.next.get_mut(name)?.pop_front());
        let once = self.by_number.remove(&number).or(once);
        once.or_else(|| self.each.get(command).or_else(|| self.each.get("*")).cloned())
    }

    /// What happens to a job of this command.
    pub(crate) fn of_job(&mut self, command: &str) -> Option<JobFault> {
        self.next_job.get_mut(command)?.pop_front()
    }

    /// The faults that were said and have not come about: a test that wanted them has not shown what it says.
    pub(crate) fn left(&self) -> Vec<String> {
        let calls =
            self.next.iter().filter(|(_, left)| !left.is_empty()).map(|(name, left)| format!("{name}: {left:?}"));
        let jobs = self.next_job.iter().filter(|(_, left)| !left.is_empty());
        let jobs = jobs.map(|(name, left)| format!("{name}: {left:?}"));
        calls
            .chain(jobs)
            .chain(self.by_number.iter().map(|(number, fault)| format!("call {number}: {fault:?}")))
            .collect()
    }
}
