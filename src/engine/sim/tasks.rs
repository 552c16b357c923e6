//! What runs outside of the engine, in a time of its own: nothing goes on by itself. A step waits at a gate until the play
//! opens it, a timer until the play has let so much time pass.

use std::collections::BTreeMap;
use std::task::{Context, Poll, Waker};

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

/// How the gate of an answer is called that takes its time.
pub(super) const LATE: &str = "the answer to: ";

/// Everything that waits.
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

    /// A gate that is passed when the play opens it.
    pub(super) fn close(&mut self, what: String) -> oneshot::Receiver<()> {
        let (open, opened) = oneshot::channel();
        let number = self.number();
        self.closed.insert(number, (what, open));
        opened
    }

    /// A gate that opens at that microsecond.
    pub(super) fn timer(&mut self, at: u64) -> oneshot::Receiver<()> {
        let (open, opened) = oneshot::channel();
        let number = self.number();
        self.timers.insert((at, number), open);
        opened
    }

    pub(super) fn start(&mut self, work: BoxFuture<'static, ()>) {
        self.begun.push(work);
    }

    /// How many steps wait.
    pub(super) fn len(&self) -> usize {
        self.closed.len()
    }

    /// Whether what waits in this place is an answer on its way.
    pub(super) fn is_late(&self, place: usize) -> bool {
        self.closed.values().nth(place).is_some_and(|(what, _)| what.starts_with(LATE))
    }

    /// Opens the gate in this place. Says what waited there.
    pub(super) fn open(&mut self, place: usize) -> Option<String> {
        let number = *self.closed.keys().nth(place)?;
        let (what, open) = self.closed.remove(&number)?;
        let _ = open.send(());
        Some(what)
    }

    /// When the next timer ends.
    pub(super) fn next_timer(&self) -> Option<u64> {
        self.timers.keys().next().map(|(at, _)| *at)
    }

    /// Ends the timers whose time has come.
    pub(super) fn pass(&mut self, now: u64) {
        while let Some(timer) = self.timers.first_entry().filter(|timer| timer.key().0 <= now) {
            let _ = timer.remove().send(());
        }
    }

    /// The process was killed.
    pub(super) fn kill(&mut self) {
        *self = Self { next: self.next, ..Self::default() };
    }

    fn take_begun(&mut self) -> Vec<BoxFuture<'static, ()>> {
        std::mem::take(&mut self.begun)
    }
}

/// The tasks, in the order in which they were begun.
#[derive(Default)]
pub(super) struct Tasks {
    tasks: Vec<BoxFuture<'static, ()>>,
}

impl Tasks {
    /// Lets each go on as far as it can. `gates`: where new ones are begun, locked for a moment only.
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
