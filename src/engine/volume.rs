//! One volume, as the engine has it.

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

/// One life of a volume in the engine. A volume that was withdrawn and announced again has another: what belongs to
/// the one before must not touch it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(super) volume: VolumeId,
    pub(super) instance: u64,
}

/// Which disk: its number and sequence number. Numbers are used again, sequence numbers are not.
pub(super) type Disk = (DevNum, u64);

/// What others see of a volume.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The wish.
    pub intent: Intent,
    /// The recorded mapping.
    pub mapping: Option<Evidence>,
    /// Where it stands; changed by [`super::world::World::set_state`] alone, which counts.
    pub state: State,
    /// Why it is not served.
    pub reason: Option<Reason>,
    /// Since when it stands there.
    pub since: Timestamp,
    /// The export's link exists.
    pub published: bool,
}

/// One volume: what is shown of it, and what the engine has besides.
pub struct Volume {
    /// Shared with lists that are being made; what changes meanwhile is copied first.
    shown: Arc<Shown>,
    /// Where it stood before the start, and since when, until something else happens to it.
    pub(super) stood: Option<(State, Timestamp)>,
    /// A handshake has succeeded for this link and this run of the server.
    pub proven: bool,
    /// Steps the store has not been told yet.
    pub notes: Vec<Note>,
    /// Where it stands, as far as the store has not been told.
    pub(super) news: Option<News>,
    /// How far it is on its way out.
    pub(super) departure: Departure,
    /// Which life of this volume it is.
    pub(super) instance: u64,
    /// The helper could not have udev look at the disk: when it is asked again, and how often it was.
    pub(super) helper_again: Option<(Instant, u32)>,
    pub(super) busy: bool,
    /// Counts revocations, so that the answer to an older probe is not taken for one about the present link.
    pub(super) epoch: u64,
    /// Only a later reading of the disk counts.
    pub(super) look_after: Reading,
    /// Whether what needs no disk is done for its export.
    pub(super) preparation: Preparation,
    /// The last change to its files that the server has to know of.
    pub(super) change: Option<FileChange>,
    pub(super) trouble: Option<Trouble>,
    /// Just now nobody had this disk open exclusively.
    pub(super) free: Option<Disk>,
    /// The moment it was last decided on.
    pub(super) judged: Instant,
    /// The same by the clock that deadlines go by.
    pub(super) judged_steady: Steady,
    /// The disk that udev was asked to look at again: its number and sequence number.
    pub(super) retriggered: Option<Disk>,
    pub(super) unwritten: bool,
    /// When it needs a look at the clock; changed by [`super::world::World::set_wake`] alone.
    pub(super) wake: Option<Instant>,
}

/// A step that happened to a volume.
#[derive(Debug, Clone)]
pub struct Note {
    /// What.
    pub entry: Entry,
    /// By whose wish, if somebody's.
    pub by: Option<User>,
    /// On the way to a withdrawal, also where it is not known any more whose.
    pub asked: bool,
}

/// A step failed and is tried again later.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) reason: Reason,
    /// The disk that it is about, if it is about one.
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
    /// What others see of it now, for whoever makes something of that later. Costs nothing.
    pub fn shown(&self) -> Arc<Shown> {
        Arc::clone(&self.shown)
    }

    /// A new wish.
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

    /// What was shown by an earlier handshake counts no more: an answer of an epoch before this one comes too late.
    pub(super) fn disprove(&mut self, epoch: u64) {
        (self.proven, self.trouble, self.epoch) = (false, None, epoch);
    }

    /// Since when it stands where it comes to stand now. What was found after a start as it was before it, the proof's own
    /// steps apart, has been so all the time.
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

    /// Where it stands when it has just been given back.
    pub(super) fn state_when_given_back(&self) -> State {
        if self.mapping.is_some() { State::Exporting } else { State::waiting_for(self.intent.origin) }
    }

    /// As the store remembers it. What was `ready` is not so until it is proven again.
    pub(super) fn from_record(record: Record, wall: Timestamp, now: Instant) -> Self {
        let state = match record.state {
            State::Ready | State::Matched => State::Exporting,
            // It was given back, and that was not written down any more.
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

/// Which disk it is.
pub(super) fn disk(device: &Device) -> Disk {
    (device.facts.devnum, device.facts.diskseq)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::sample;

    #[test]
    fn what_a_list_has_taken_stays_as_it_was_and_costs_no_copy_as_long_as_nothing_changes() {
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
