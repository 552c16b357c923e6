//! What is kept about a volume: its intent, its state, and its timeline.

use std::borrow::Cow;

use jiff::{SignedDuration, Timestamp};

use crate::clock::{self, Steady};
use crate::device::evidence::Evidence;
use crate::identity::{OperationId, Serial, VolumeId};
use crate::reason::{Case, Code, StepName, StoryStep};

mod snapshot;

pub use snapshot::{Snapshot, SnapshotNews};

/// A durable wish that a volume be mapped and exported on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// The volume.
    pub volume: VolumeId,
    /// The volume's VM; empty while unknown.
    pub vm_id: String,
    /// The smallest size that the disk may have, in bytes.
    pub size_bytes: Option<u64>,
    /// How long to wait for the disk, in seconds. A disk that comes later is still served.
    pub deadline_seconds: Option<u32>,
    /// The end of that time, by the steady clock.
    pub deadline: Option<Steady>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// The user who made the request, from the socket's peer credentials.
    pub uid: Option<u32>,
    /// Who attaches the volume.
    pub origin: IntentOrigin,
}

/// Who attaches a volume to this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntentOrigin {
    /// Another program, which has announced the volume.
    Announced,
    /// This operation, which makes CloudStack attach it.
    Operation(OperationId),
}

/// The user who made a request, from the socket's peer credentials.
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

/// What has sealed a volume: its export is removed and stays removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// A withdrawal of the volume.
    Withdrawal,
    /// This operation, which will unseal or release the volume.
    Operation(OperationId),
}

impl Intent {
    /// Returns the serial that the disk will show.
    pub fn serial(&self) -> Serial {
        self.volume.serial()
    }

    /// Returns the end of a wait that begins at `now`.
    pub fn deadline_from(now: Steady, seconds: Option<u32>) -> Option<Steady> {
        seconds.map(|seconds| now.after(SignedDuration::from_secs(seconds.into())))
    }

    /// Returns the end of the wait by the present wall clock, for people.
    pub fn deadline_at(&self, now: Steady, wall: Timestamp) -> Option<Timestamp> {
        let wait = SignedDuration::from_secs(self.deadline_seconds?.into());
        let planned = self.created_at.checked_add(wait).unwrap_or(Timestamp::MAX);
        Some(clock::shown(self.deadline?, planned, now, wall))
    }
}

/// The state of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// CloudStack was asked to attach the volume.
    Attaching,
    /// No disk with its serial is here yet.
    Waiting,
    /// A disk is proven to be the volume's and is being recorded.
    Matched,
    /// The disk is recorded. The export is not served yet, or the server is down.
    Exporting,
    /// Served: an NBD handshake succeeded.
    Ready,
    /// The volume was mapped, and its disk is gone.
    Lost,
    /// The export is removed, for a withdrawal or for an operation.
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

    /// Returns the state of a volume whose disk has never been here.
    pub fn waiting_for(origin: IntentOrigin) -> Self {
        match origin {
            IntentOrigin::Announced => Self::Waiting,
            IntentOrigin::Operation(_) => Self::Attaching,
        }
    }

    /// Returns the story step for reaching this state.
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

    /// Returns the name in the API and the store.
    pub fn as_str(self) -> &'static str {
        self.step().name()
    }

    /// Returns the state with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }
}

/// Returns how many volumes are in each state, in the order of a volume's life: `2 ready, 1 lost`. States without
/// volumes are left out.
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
    /// The code, for programs, like `IN_USE_BY_HOST`.
    pub code: Code,
    /// What happened, and to what.
    pub message: String,
    /// What to do next. Most hints are the same for every volume.
    pub hint: Cow<'static, str>,
}

impl Reason {
    /// Makes a reason with the hint of its code.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        debug_assert!(!code.hint().contains("{}"), "{code} is about something: Reason::about");
        Self::hinted(code, message, code.hint())
    }

    /// Makes a reason with a code whose hint names a device, a scheme or the NBD server's unit.
    pub fn about(code: Code, what: &str, message: impl Into<String>) -> Self {
        Self::hinted(code, message, code.hint_about(what))
    }

    /// Makes a reason for a case, which is more specific than the code.
    pub fn of_case(case: Case, message: impl Into<String>) -> Self {
        debug_assert!(!case.hint().contains("{}"), "{case:?} is about something: Reason::of_case_about");
        Self::hinted(case.code(), message, case.hint())
    }

    /// Makes a reason for a case whose hint names something.
    pub fn of_case_about(case: Case, what: &str, message: impl Into<String>) -> Self {
        Self::hinted(case.code(), message, case.hint_about(what))
    }

    /// Makes a reason with a hint that came from the table earlier.
    pub fn hinted(code: Code, message: impl Into<String>, hint: impl Into<Cow<'static, str>>) -> Self {
        debug_assert!(code.is_of_volumes(), "{code} is no volume's reason");
        Self { code, message: message.into(), hint: hint.into() }
    }
}

/// One step in a volume's story.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The time, with microseconds.
    pub at: Timestamp,
    /// The name of the step.
    pub event: StepName,
    /// Details, for people.
    pub detail: String,
}

/// What the store keeps of a volume, without its timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The intent.
    pub intent: Intent,
    /// The last recorded mapping; kept while its disk is gone.
    pub mapping: Option<Evidence>,
    /// The last recorded state.
    pub state: State,
    /// Why the volume is not served, if it is not.
    pub reason: Option<Reason>,
    /// Since when the volume has this state; earlier versions did not record it.
    pub since: Option<Timestamp>,
    /// What has sealed the volume, if anything. A withdrawal here is a forced one that waits until the clients are
    /// gone.
    pub sealed: Option<By>,
}

#[cfg(test)]
pub(crate) mod sample {
    use super::*;

    /// An announced volume; only its VM is given.
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
