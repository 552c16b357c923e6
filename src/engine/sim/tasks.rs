//! The work outside of the engine, in its own time. Nothing advances by itself: a step waits at a gate until the
//! simulation opens it, and a timer waits until the simulation lets enough time pass.

use std::collections::BTreeMap;
use std::task::{Context, Poll, Waker};

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

/// How the name of a gate begins that delays an answer.
pub(super) const LATE: &str = "the answer to: ";

/// All gates and timers.
#[derive(Default)]
pub(super) struct Gates {
    next: u64,
    closed: BTreeMap<u64, (String, oneshot::Sender<()>)>,
    /// By the microsecond at which each ends.
    timers: BTreeMap<(u64, u64), oneshot::Sender<()>>,
    begun: Vec<BoxFuture<'static, ()>>,
}

impl Gates {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Returns a gate that the simulation opens.
    pub(super) fn close(&mut self, what: String) -> oneshot::Receiver<()> {
        let (open, opened) = oneshot::channel();
        let number = self.number();
        self.closed.insert(number, (what, open));
        opened
    }

    /// Returns a gate that opens at that microsecond.
    pub(super) fn timer(&mut self, at: u64) -> oneshot::Receiver<()> {
        let (open, opened) = oneshot::channel();
        let number = self.number();
        self.timers.insert((at, number), open);
        opened
    }

    pub(super) fn start(&mut self, work: BoxFuture<'static, ()>) {
        self.begun.push(work);
    }

    /// Returns the number of closed gates.
    pub(super) fn len(&self) -> usize {
        self.closed.len()
    }

    /// Returns whether the gate at this index delays an answer.
    pub(super) fn is_late(&self, place: usize) -> bool {
        self.closed.values().nth(place).is_some_and(|(what, _)| what.starts_with(LATE))
    }

    /// Opens the gate at this index, and returns what waited there.
    pub(super) fn open(&mut self, place: usize) -> Option<String> {
        let number = *self.closed.keys().nth(place)?;
        let (what, open) = self.closed.remove(&number)?;
        let _ = open.send(());
        Some(what)
    }

    /// Returns when the next timer ends.
    pub(super) fn next_timer(&self) -> Option<u64> {
        self.timers.keys().next().map(|(at, _)| *at)
    }

    /// Ends the timers whose time has come.
    pub(super) fn pass(&mut self, now: u64) {
        while let Some(timer) = self.timers.first_entry().filter(|timer| timer.key().0 <= now) {
            let _ = timer.remove().send(());
        }
    }

    /// Drops everything, because the process was killed.
    pub(super) fn kill(&mut self) {
        *self = Self { next: self.next, ..Self::default() };
    }

    fn take_begun(&mut self) -> Vec<BoxFuture<'static, ()>> {
        std::mem::take(&mut self.begun)
    }
}

/// The tasks, in the order in which they started.
#[derive(Default)]
pub(super) struct Tasks {
    tasks: Vec<BoxFuture<'static, ()>>,
}

impl Tasks {
    /// Polls each task as far as it gets. `gates` gives access to the new tasks, and locks them for a moment only.
    pub(super) fn poll(&mut self, gates: impl Fn(&mut dyn FnMut(&mut Gates))) {
        let mut context = Context::from_waker(Waker::noop());
        loop {
            let before = self.tasks.len();
            gates(&mut |gates| self.tasks.append(&mut gates.take_begun()));
            let begun = self.tasks.len() - before;
            let all = self.tasks.len();
            self.tasks.retain_mut(|task| matches!(task.as_mut().poll(&mut context), Poll::Pending));
            if begun == 0 && self.tasks.len() == all {
                return;
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    pub(super) fn kill(&mut self) {
        self.tasks.clear();
    }
}
