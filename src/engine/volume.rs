//! One volume in the engine.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;

use super::departure::Departure;
use super::preparation::Preparation;
use super::telling::FileChange;
use crate::clock::Steady;
use crate::device::DevNum;
use crate::device::evidence::Evidence;
use crate::device::table::{Device, Reading};
use crate::identity::VolumeId;
use crate::store::News;
use crate::volume::{Entry, Intent, Reason, Record, State, User};

/// Identifies one life of a volume in the engine. A volume that was withdrawn and announced again has another life,
/// and results of the earlier life must not change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(super) volume: VolumeId,
    pub(super) instance: u64,
}

/// Identifies a disk: its number and sequence number. Numbers are reused; sequence numbers are not.
pub(super) type Disk = (DevNum, u64);

/// The part of a volume that others read.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The intent.
    pub intent: Intent,
    /// The recorded mapping.
    pub mapping: Option<Evidence>,
    /// The state. Only [`super::world::World::set_state`] changes it, because it counts the states.
    pub state: State,
    /// Why the volume is not served.
    pub reason: Option<Reason>,
    /// Since when the volume has this state.
    pub since: Timestamp,
    /// Whether the export's link exists.
    pub published: bool,
}

/// One volume: the part that others read, and what only the engine uses.
pub struct Volume {
    /// Shared with lists that are being written. A change meanwhile copies the value first.
    shown: Arc<Shown>,
    /// The state before the start, and since when, until something else happens to the volume.
    pub(super) stood: Option<(State, Timestamp)>,
    /// Whether a handshake has succeeded for this link and this run of the server.
    pub proven: bool,
    /// Steps that are not posted to the store yet.
    pub notes: Vec<Note>,
    /// The state, if it is not posted to the store yet.
    pub(super) news: Option<News>,
    /// How far the volume's withdrawal is.
    pub(super) departure: Departure,
    /// The number of this life of the volume.
    pub(super) instance: u64,
    /// When the helper is asked again to retrigger udev, and how often it was asked.
    pub(super) helper_again: Option<(Instant, u32)>,
    pub(super) busy: bool,
    /// The number of revocations. With it the answer to an older probe is not taken for one about the present link.
    pub(super) epoch: u64,
    /// Only a later reading of the disk counts.
    pub(super) look_after: Reading,
    /// Whether the preparation of the export that needs no disk is done.
    pub(super) preparation: Preparation,
    /// The last change to the volume's files of which the server must know.
    pub(super) change: Option<FileChange>,
    pub(super) trouble: Option<Trouble>,
    /// The disk that no process had open exclusively a moment ago.
    pub(super) free: Option<Disk>,
    /// The moment of the last decision.
    pub(super) judged: Instant,
    /// The moment of the last decision by the clock of the deadlines.
    pub(super) judged_steady: Steady,
    /// The disk for which udev was retriggered.
    pub(super) retriggered: Option<Disk>,
    pub(super) unwritten: bool,
    /// When the volume's timer ends. Only [`super::world::World::set_wake`] changes it.
    pub(super) wake: Option<Instant>,
}

/// A step that happened to a volume.
#[derive(Debug, Clone)]
pub struct Note {
    /// The step.
    pub entry: Entry,
    /// The user who asked for it, if any.
    pub by: Option<User>,
    /// Whether the step belongs to a withdrawal that was asked for, even if it is unknown by whom.
    pub asked: bool,
}

/// A failed step that is retried later.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) reason: Reason,
    /// The disk that the failure is about, if any.
    pub(super) disk: Option<Disk>,
    pub(super) attempts: u32,
    pub(super) again_at: Instant,
}

impl Deref for Volume {
    type Target = Shown;

    fn deref(&self) -> &Shown {
        &self.shown
    }
}

impl DerefMut for Volume {
    fn deref_mut(&mut self) -> &mut Shown {
        Arc::make_mut(&mut self.shown)
    }
}

impl Volume {
    /// Returns the readable part as it is now, for later use. This copies nothing.
    pub fn shown(&self) -> Arc<Shown> {
        Arc::clone(&self.shown)
    }

    /// Returns the volume of a new intent.
    pub(super) fn new(intent: Intent, wall: Timestamp, now: Instant) -> Self {
        let since = Some(intent.created_at);
        Self::from_record(
            Record {
                state: State::waiting_for(intent.origin),
                intent,
                mapping: None,
                reason: None,
                since,
                sealed: None,
            },
            wall,
            now,
        )
    }

    /// Drops the proof of earlier handshakes. An answer of an epoch before this one comes too late.
    pub(super) fn disprove(&mut self, epoch: u64) {
        (self.proven, self.trouble, self.epoch) = (false, None, epoch);
    }

    /// Returns since when the volume has the state that it gets now. A state that is the same after a start as before
    /// it has lasted all the time, except for the steps of the proof.
    pub(super) fn stands_since(&mut self, state: State, reason: Option<&Reason>, now: Timestamp) -> Timestamp {
        match self.stood {
            Some((stood, since)) if stood == state => since,
            Some((State::Ready, _)) if state == State::Exporting && reason.is_none() => now,
            _ => {
                self.stood = None;
                if self.state == state { self.since } else { now }
            }
        }
    }

    /// Returns the state of a volume that has just been given back.
    pub(super) fn state_when_given_back(&self) -> State {
        if self.mapping.is_some() { State::Exporting } else { State::waiting_for(self.intent.origin) }
    }

    /// Returns the volume of a record. A volume that was `ready` must be proven again.
    pub(super) fn from_record(record: Record, wall: Timestamp, now: Instant) -> Self {
        let state = match record.state {
            State::Ready | State::Matched => State::Exporting,
            // The volume was given back, and that was not recorded any more.
            State::Detaching if record.sealed.is_none() => State::Exporting,
            other => other,
        };
        let since = record.since.unwrap_or(wall);
        let Record { intent, mapping, reason, .. } = record;
        Self {
            shown: Arc::new(Shown { intent, mapping, state, reason, since, published: false }),
            stood: record.since.map(|since| (record.state, since)),
            proven: false,
            notes: Vec::new(),
            news: None,
            departure: Departure::remembered(record.sealed),
            instance: 0,
            helper_again: None,
            busy: false,
            epoch: 0,
            look_after: 0,
            preparation: Preparation::default(),
            change: None,
            trouble: None,
            free: None,
            judged: now,
            judged_steady: Steady::from_micros(i64::MIN),
            retriggered: None,
            unwritten: false,
            wake: None,
        }
    }
}

/// Returns which disk this is.
pub(super) fn disk(device: &Device) -> Disk {
    (device.facts.devnum, device.facts.diskseq)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::sample;

    #[test]
    fn a_value_taken_by_a_list_stays_unchanged_and_is_copied_only_on_a_change() {
        let id = "00000000-0000-4000-8000-000000000001".parse().unwrap();
        let mut volume = Volume::new(sample::intent(id), Timestamp::UNIX_EPOCH, Instant::now());
        let taken = volume.shown();
        volume.proven = true;
        assert!(Arc::ptr_eq(&taken, &volume.shown()), "what nobody sees has changed");
        volume.published = true;
        assert!(!taken.published && volume.published && volume.shown().published);
        let mine = Arc::as_ptr(&volume.shown());
        volume.published = false;
        assert_eq!(mine, Arc::as_ptr(&volume.shown()), "nobody has taken it: nothing is copied");
    }
}
