//! What is kept about a volume: its intent, its state, and the timeline of how it got there.

use std::borrow::Cow;

use jiff::{SignedDuration, Timestamp};

use crate::clock::{self, Steady};
use crate::device::evidence::Evidence;
use crate::identity::{OperationId, Serial, VolumeId};
use crate::reason::{Case, Code, StepName, StoryStep};

/// A durable wish that a volume be mapped and exported on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// Which volume.
    pub volume: VolumeId,
    /// The VM it belongs to; empty while unknown.
    pub vm_id: String,
    /// The least size its disk must have, in bytes.
    pub size_bytes: Option<u64>,
    /// How long to wait for the disk, in seconds; a disk that comes later is served all the same.
    pub deadline_seconds: Option<u32>,
    /// When that is over, by the clock that nobody can set.
    pub deadline: Option<Steady>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// The user who asked, from the socket's peer credentials.
    pub uid: Option<u32>,
    /// Where the wish comes from.
    pub origin: IntentOrigin,
}

/// Where a wish comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntentOrigin {
    /// Somebody else attaches the volume, and has announced it.
    Announced,
    /// This operation, which has CloudStack attach it.
    Operation(OperationId),
}

/// The user who asked for something, from the socket's peer credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User(pub Option<u32>);

impl std::fmt::Display for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(uid) => write!(f, "uid {uid}"),
            None => f.write_str("a user who is not known"),
        }
    }
}

/// What a volume is sealed by: its export is taken away, and stays away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The volume is withdrawn, and goes.
    Withdrawal,
    /// This operation, which unseals or releases it.
    Operation(OperationId),
}

impl Intent {
    /// The serial its disk will show.
    pub fn serial(&self) -> Serial {
        self.volume.serial()
    }

    /// When waiting is over that begins now.
    pub fn deadline_from(now: Steady, seconds: Option<u32>) -> Option<Steady> {
        seconds.map(|seconds| now.after(SignedDuration::from_secs(seconds.into())))
    }

    /// When waiting ends, by the wall clock as it goes now: for people.
    pub fn deadline_at(&self, now: Steady, wall: Timestamp) -> Option<Timestamp> {
        let wait = SignedDuration::from_secs(self.deadline_seconds?.into());
        let planned = self.created_at.checked_add(wait).unwrap_or(Timestamp::MAX);
        Some(clock::shown(self.deadline?, planned, now, wall))
    }
}

/// Where a volume stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// CloudStack was asked to attach it.
    Attaching,
    /// No disk with its serial is here yet.
    Waiting,
    /// A disk is proven to be the volume's; being recorded.
    Matched,
    /// Recorded; on the way to being served, or the server is down.
    Exporting,
    /// Served: an NBD handshake succeeded.
    Ready,
    /// Was mapped, and its disk is gone.
    Lost,
    /// Being taken away.
    Detaching,
    /// A disk with its serial is here and fails a check.
    Refused,
    /// The deadline passed without a disk.
    Expired,
}

impl State {
    /// Every state, in the order of a volume's life.
    pub const ALL: [Self; 9] = [
        Self::Attaching,
        Self::Waiting,
        Self::Matched,
        Self::Exporting,
        Self::Ready,
        Self::Lost,
        Self::Detaching,
        Self::Refused,
        Self::Expired,
    ];

    /// Where a volume waits whose disk has never been here.
    pub fn waiting_for(origin: IntentOrigin) -> Self {
        match origin {
            IntentOrigin::Announced => Self::Waiting,
            IntentOrigin::Operation(_) => Self::Attaching,
        }
    }

    /// The step by which a story tells that it was reached.
    pub const fn step(self) -> StoryStep {
        match self {
            Self::Attaching => StoryStep::Attaching,
            Self::Waiting => StoryStep::Waiting,
            Self::Matched => StoryStep::Matched,
            Self::Exporting => StoryStep::Exporting,
            Self::Ready => StoryStep::Ready,
            Self::Lost => StoryStep::Lost,
            Self::Detaching => StoryStep::Detaching,
            Self::Refused => StoryStep::Refused,
            Self::Expired => StoryStep::Expired,
        }
    }

    /// The name in the API and the store.
    pub fn as_str(self) -> &'static str {
        self.step().name()
    }

    /// The state of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }
}

/// How many volumes are in which state, in the order of a volume's life: `2 ready, 1 lost`. States without any are left out.
pub fn counted(count: impl Fn(State) -> usize) -> String {
    let counts = State::ALL.map(|state| (count(state), state));
    let words: Vec<_> = counts.iter().filter(|(n, _)| *n > 0).map(|(n, state)| format!("{n} {state}")).collect();
    words.join(", ")
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a volume is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// For programs, like `IN_USE_BY_HOST`.
    pub code: Code,
    /// What happened, to what.
    pub message: String,
    /// What to do next. Most are the same for every volume.
    pub hint: Cow<'static, str>,
}

impl Reason {
    /// A reason with the hint that its code has.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        debug_assert!(!code.hint().contains("{}"), "{code} is about something: Reason::about");
        Self::hinted(code, message, code.hint())
    }

    /// The same for a code whose hint is about something: a device, a scheme, the NBD server's unit.
    pub fn about(code: Code, what: &str, message: impl Into<String>) -> Self {
        Self::hinted(code, message, code.hint_about(what))
    }

    /// A reason in a case of which more is known than the code says.
    pub fn of_case(case: Case, message: impl Into<String>) -> Self {
        debug_assert!(!case.hint().contains("{}"), "{case:?} is about something: Reason::of_case_about");
        Self::hinted(case.code(), message, case.hint())
    }

    /// The same for a case whose hint is about something.
    pub fn of_case_about(case: Case, what: &str, message: impl Into<String>) -> Self {
        Self::hinted(case.code(), message, case.hint_about(what))
    }

    /// A reason with a hint that was taken from the table before.
    pub fn hinted(code: Code, message: impl Into<String>, hint: impl Into<Cow<'static, str>>) -> Self {
        debug_assert!(code.is_of_volumes(), "{code} is no volume's reason");
        Self { code, message: message.into(), hint: hint.into() }
    }
}

/// One step in a volume's story.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When, with microseconds.
    pub at: Timestamp,
    /// What: the name of the step.
    pub event: StepName,
    /// The particulars, for people.
    pub detail: String,
}

/// What the store keeps of a volume, besides its timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The wish.
    pub intent: Intent,
    /// The last recorded mapping; kept while its disk is gone.
    pub mapping: Option<Evidence>,
    /// Where it stood.
    pub state: State,
    /// Why.
    pub reason: Option<Reason>,
    /// Since when; not kept by earlier versions.
    pub since: Option<Timestamp>,
    /// What it is sealed by, if it is. Withdrawn: by force, and it goes when its clients are gone.
    pub sealed: Option<By>,
}

#[cfg(test)]
pub(crate) mod sample {
    use super::*;

    /// An announced volume, with nothing said but its VM.
    pub(crate) fn intent(volume: VolumeId) -> Intent {
        Intent {
            volume,
            vm_id: "vm".into(),
            size_bytes: None,
            deadline_seconds: None,
            deadline: None,
            created_at: clock::wall(),
            uid: None,
            origin: IntentOrigin::Announced,
        }
    }
}
