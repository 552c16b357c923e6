//! What all threads share: the volumes, the last actions, the counts, and the first failure.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use lab::attachd::SOCKET;
use lab::{Api, Volume};

/// The number of actions that are kept.
const HISTORY: usize = 60;

/// The shared state. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Ledger(Arc<Inner>);

impl std::ops::Deref for Ledger {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

pub(crate) struct Inner {
    pub(crate) api: Api,
    begun: Instant,
    volumes: Mutex<Vec<Arc<Known>>>,
    /// Work on the NBD server: odd while there is some.
    pub(crate) server: Turns,
    /// The volume that is being copied, and the number of copies.
    pub(crate) copying: Mutex<(Option<String>, u64)>,
    pub(crate) over: AtomicBool,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    history: Mutex<VecDeque<String>>,
    failure: Mutex<Option<String>>,
}

/// A volume and its disk, as NBD clients should find it.
pub(crate) struct Known {
    pub(crate) volume: Volume,
    pub(crate) size: u64,
    /// The file with its bytes.
    pub(crate) file: PathBuf,
    /// Work on its disk and its intent: odd while there is some.
    pub(crate) turns: Turns,
    /// Held for reading by connected clients: a loop device cannot be removed under a client as a real disk can.
    pub(crate) gate: RwLock<()>,
}

/// Counts the beginnings and ends of work on something.
#[derive(Default)]
pub(crate) struct Turns(AtomicU64);

impl Turns {
    pub(crate) fn begin(&self) {
        if self.now().is_multiple_of(2) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    pub(crate) fn end(&self) {
        if !self.now().is_multiple_of(2) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Returns the count, which is even while there is no work.
    pub(crate) fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// A check that nothing was done to the volume and the server since.
pub(crate) struct Quiet<'a> {
    turns: [&'a Turns; 2],
    then: [u64; 2],
}

impl Quiet<'_> {
    pub(crate) fn still(&self) -> bool {
        self.then.iter().all(|then| then.is_multiple_of(2)) && self.turns.map(Turns::now) == self.then
    }
}

impl Ledger {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner {
            api: Api::new(SOCKET),
            begun: Instant::now(),
            volumes: Mutex::default(),
            server: Turns::default(),
            copying: Mutex::default(),
            over: AtomicBool::new(false),
            counts: Mutex::default(),
            history: Mutex::default(),
            failure: Mutex::default(),
        }))
    }
}

impl Inner {
    pub(crate) fn quiet<'a>(&'a self, known: &'a Known) -> Quiet<'a> {
        let turns = [&known.turns, &self.server];
        Quiet { turns, then: turns.map(Turns::now) }
    }

    pub(crate) fn add(&self, known: Arc<Known>) {
        held(&self.volumes).push(known);
    }

    pub(crate) fn remove(&self, volume: &Volume) {
        held(&self.volumes).retain(|known| known.volume != *volume);
    }

    pub(crate) fn any(&self, random: &mut fastrand::Rng) -> Option<Arc<Known>> {
        random.choice(held(&self.volumes).iter()).cloned()
    }

    pub(crate) fn count(&self, what: &'static str) {
        *held(&self.counts).entry(what).or_default() += 1;
    }

    /// Keeps the greatest value.
    pub(crate) fn most(&self, what: &'static str, value: u64) {
        let mut counts = held(&self.counts);
        let most = counts.entry(what).or_default();
        *most = value.max(*most);
    }

    pub(crate) fn counted(&self, what: &str) -> u64 {
        held(&self.counts).get(what).copied().unwrap_or_default()
    }

    pub(crate) fn counts(&self) -> String {
        held(&self.counts).iter().fold(String::new(), |mut text, (what, count)| {
            let _ = write!(text, "{}{what} {count}", if text.is_empty() { "" } else { ", " });
            text
        })
    }

    /// Records an action.
    pub(crate) fn did(&self, what: impl std::fmt::Display) {
        let mut history = held(&self.history);
        if history.len() == HISTORY {
            history.pop_front();
        }
        history.push_back(format!("{:9.3} {what}", self.begun.elapsed().as_secs_f64()));
    }

    /// Records a failure; the first one counts.
    pub(crate) fn fail(&self, why: impl std::fmt::Display) {
        self.did(format_args!("FAILED: {why}"));
        held(&self.failure).get_or_insert_with(|| why.to_string());
    }

    pub(crate) fn failed(&self) -> bool {
        held(&self.failure).is_some()
    }

    pub(crate) fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed) && !self.failed()
    }

    pub(crate) fn failure(&self) -> Option<(String, Vec<String>)> {
        let why = held(&self.failure).clone()?;
        Some((why, held(&self.history).iter().cloned().collect()))
    }
}

/// A panic of a watcher is a failure of its own; the others continue to the end.
pub(crate) fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
