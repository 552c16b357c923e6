//! Everything the engine knows. Only the engine writes it; others read it through [`super::Handle::read`].

use std::collections::{BTreeMap, BTreeSet, HashMap, hash_map};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::again::Again;
use super::claimed::Claimed;
use super::exports::Exported;
use super::helper::Unmarking;
use super::input::Ticket;
use super::server::Handshakes;
use super::tell::{FileChange, Telling};
use super::tools::Helper;
use super::udevd::Ear;
use super::withdraw::Departure;
use crate::clock::Steady;
use crate::device::DevNum;
use crate::device::evidence::{Evidence, Ground};
use crate::device::table::{Device, Reading, Table};
use crate::export::server::Server;
use crate::folder::Names;
use crate::identity::{Serial, VolumeId};
use crate::reason::Code;
use crate::store::News;
use crate::volume::{Entry, Intent, Reason, Record, State, User};

/// Which disk: its number and sequence number. Numbers are used again, sequence numbers are not.
pub(super) type Disk = (DevNum, u64);

/// All of it.
pub struct World {
    /// What evidence is held against.
    pub ground: Ground,
    /// The present disks.
    pub table: Table,
    /// The NBD server; `None`: not known yet.
    pub server: Option<Server>,
    /// What is known of it by handshakes.
    pub handshakes: Handshakes,
    /// How far the NBD server was told of its files.
    pub telling: Telling,
    /// Whether udevd is heard.
    pub ear: Ear,
    /// attachd-helper: whether it answers.
    pub helper: Arc<dyn Helper>,
    /// How often everything was read, and why last.
    pub resyncs: Resyncs,
    /// How far the folders that the NBD server reads are what they have to be.
    pub exported: Exported,
    /// How far the folder of claims is what it has to be.
    pub claimed: Claimed,
    /// Disks that could not be read.
    pub(super) again: Again,
    /// Serials whose disks the helper is asked to give back.
    pub(super) unmarking: HashMap<Serial, Unmarking>,
    /// By id, so that they can be gone through in pieces. Boxed: a node of the tree has eleven places, and half of them are
    /// empty as a rule.
    volumes: BTreeMap<VolumeId, Box<Volume>>,
    by_serial: HashMap<Serial, VolumeId>,
    /// How many volumes are in each state: kept, because it is asked for at each event.
    counts: BTreeMap<State, usize>,
    /// How many intents each user has.
    by_user: HashMap<Option<u32>, usize>,
    /// When which volume needs a look at the clock. Empty when nothing is pending. By the clock that nobody can set.
    wakes: BTreeSet<(Instant, VolumeId)>,
}

/// The history of resyncs.
#[derive(Debug, Clone, Default)]
pub struct Resyncs {
    /// Since the start.
    pub count: u64,
    /// Why the last one was made.
    pub last_reason: &'static str,
    /// When it was complete.
    pub last_at: Option<Timestamp>,
    /// How often events were lost.
    pub losses: u64,
}

/// One volume.
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own; together they are no state machine")]
pub struct Volume {
    /// The wish.
    pub intent: Intent,
    /// The recorded mapping.
    pub mapping: Option<Evidence>,
    /// Where it stands; changed by [`World::set_state`] alone, which counts.
    pub state: State,
    /// Why it is not served.
    pub reason: Option<Reason>,
    /// Since when it stands there.
    pub since: Timestamp,
    /// Where it stood before the start, and since when, until something else happens to it.
    pub(super) stood: Option<(State, Timestamp)>,
    /// The export's link exists.
    pub published: bool,
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
    wake: Option<Instant>,
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

/// How far an export is prepared.
#[derive(Debug)]
pub(super) enum Preparation {
    /// Not begun.
    No,
    /// It is being done; `again`: something happened to it since that began. `failed`: why it could not be, before.
    UnderWay { again: bool, failed: Option<String>, attempts: u32 },
    /// It could not be, and is tried again.
    Failed { why: String, kind: std::io::ErrorKind, attempts: u32, again_at: Instant },
    /// It is.
    Done,
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

impl Volume {
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
        Self {
            intent: record.intent,
            mapping: record.mapping,
            state,
            reason: record.reason,
            since: record.since.unwrap_or(wall),
            stood: record.since.map(|since| (record.state, since)),
            published: false,
            proven: false,
            notes: Vec::new(),
            news: None,
            departure: Departure::remembered(record.sealed),
            instance: 0,
            helper_again: None,
            busy: false,
            epoch: 0,
            look_after: 0,
            preparation: Preparation::No,
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

impl World {
    /// A world without volumes and disks.
    pub(super) fn new(ground: Ground, helper: Arc<dyn Helper>) -> Self {
        Self {
            ground,
            table: Table::default(),
            server: None,
            handshakes: Handshakes::default(),
            telling: Telling::default(),
            ear: Ear::default(),
            helper,
            resyncs: Resyncs::default(),
            exported: Exported::default(),
            claimed: Claimed::default(),
            again: Again::default(),
            unmarking: HashMap::new(),
            volumes: BTreeMap::new(),
            by_serial: HashMap::new(),
            by_user: HashMap::new(),
            counts: State::ALL.map(|state| (state, 0)).into(),
            wakes: BTreeSet::new(),
        }
    }

    /// The volume of that id.
    pub fn volume(&self, id: VolumeId) -> Option<&Volume> {
        self.volumes.get(&id).map(Box::as_ref)
    }

    /// The volume whose disks show this serial: at most one.
    pub fn volume_of(&self, serial: Serial) -> Option<VolumeId> {
        self.by_serial.get(&serial).copied()
    }

    /// Every volume, by id. However many there are: in one turn only what is quick for each.
    pub fn volumes(&self) -> impl ExactSizeIterator<Item = &Volume> {
        self.volumes.values().map(Box::as_ref)
    }

    /// Every volume's id, in order.
    pub fn volume_ids(&self) -> impl Iterator<Item = VolumeId> {
        self.volumes.keys().copied()
    }

    /// The volumes whose id comes after this one, by id; from the first on without one.
    pub fn volumes_after(&self, id: Option<VolumeId>) -> impl Iterator<Item = &Volume> {
        let from = id.map_or(Bound::Unbounded, Bound::Excluded);
        self.volumes.range((from, Bound::Unbounded)).map(|(_, volume)| &**volume)
    }

    /// The volumes whose mapping leads to this number. For the rare case that no serial tells: it looks at all of them.
    pub(super) fn mapped_to(&self, devnum: DevNum) -> Vec<VolumeId> {
        let to = |volume: &&Volume| volume.mapping.as_ref().is_some_and(|mapping| mapping.devnum == devnum);
        self.volumes().filter(to).map(|volume| volume.intent.volume).collect()
    }

    /// Why nothing newer can be known of the volume's disk than what holds of it already.
    pub(super) fn unread(&self, volume: &Volume, present: &[&Device]) -> Option<&str> {
        let (devnum, diskseq) = match (present, &volume.mapping) {
            ([device], _) => (device.facts.devnum, device.facts.diskseq),
            // No serial was read since the start, but the number is still the very disk's that is on record.
            ([], Some(mapping)) if mapping.boot_id == self.ground.boot_id => (mapping.devnum, mapping.diskseq),
            _ => return None,
        };
        self.table.unread(devnum, diskseq)
    }

    /// How many intents a user has.
    pub(super) fn intents_of(&self, uid: Option<u32>) -> usize {
        self.by_user.get(&uid).copied().unwrap_or(0)
    }

    /// How many volumes are in each state; states without any are there with 0.
    pub fn counts(&self) -> &BTreeMap<State, usize> {
        &self.counts
    }

    /// Moves a volume to another state.
    pub(super) fn set_state(&mut self, id: VolumeId, state: State) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        let old = std::mem::replace(&mut volume.state, state);
        self.count(old, |n| n - 1);
        self.count(state, |n| n + 1);
    }

    /// Every volume, to be changed in passing: in one turn only what is quick for each, and nothing that others count or
    /// find it by.
    pub(super) fn volumes_mut(&mut self) -> impl Iterator<Item = &mut Volume> {
        self.volumes.values_mut().map(Box::as_mut)
    }

    /// Lets udev be asked again, once, about every disk, and what could not be prepared be tried again. What was in use may be
    /// free by `now`, too.
    pub(super) fn try_again(&mut self, now: Instant) {
        for volume in self.volumes.values_mut() {
            if let Some(trouble) = volume.trouble.as_mut().filter(|trouble| trouble.disk.is_some()) {
                trouble.again_at = now;
            }
            (volume.retriggered, volume.helper_again) = (None, None);
            if let Preparation::Failed { again_at, .. } = &mut volume.preparation {
                *again_at = volume.judged;
            }
        }
    }

    fn count(&mut self, state: State, change: impl FnOnce(usize) -> usize) {
        let count = self.counts.entry(state).or_default();
        *count = change(*count);
    }

    /// This life of the volume.
    pub(super) fn ticket(&self, id: VolumeId) -> Option<Ticket> {
        self.volumes.get(&id).map(|volume| Ticket { volume: id, instance: volume.instance })
    }

    /// Whether that life of the volume is the present one.
    pub(super) fn holds(&self, ticket: Ticket) -> bool {
        self.ticket(ticket.volume) == Some(ticket)
    }

    pub(super) fn volume_mut(&mut self, id: VolumeId) -> Option<&mut Volume> {
        self.volumes.get_mut(&id).map(Box::as_mut)
    }

    /// Every volume's id, those first whose disk is here: they have somebody waiting.
    pub(super) fn ids(&self) -> Vec<VolumeId> {
        let serials = self.table.all().filter_map(|device| device.facts.serial());
        let here: BTreeSet<VolumeId> = serials.filter_map(|serial| self.volume_of(serial)).collect();
        let others = self.volumes.keys().filter(|id| !here.contains(id));
        here.iter().chain(others).copied().collect()
    }

    pub(super) fn insert(&mut self, volume: Volume) {
        self.by_serial.insert(volume.intent.serial(), volume.intent.volume);
        self.count(volume.state, |n| n + 1);
        *self.by_user.entry(volume.intent.uid).or_default() += 1;
        self.volumes.insert(volume.intent.volume, Box::new(volume));
    }

    pub(super) fn remove(&mut self, id: VolumeId) -> Option<Volume> {
        self.set_wake(id, None);
        let volume = *self.volumes.remove(&id)?;
        self.count(volume.state, |n| n - 1);
        self.by_serial.remove(&volume.intent.serial());
        if let hash_map::Entry::Occupied(mut user) = self.by_user.entry(volume.intent.uid) {
            *user.get_mut() -= 1;
            if *user.get() == 0 {
                user.remove();
            }
        }
        shrink(&mut self.by_serial);
        Some(volume)
    }

    /// When the clock is to be looked at for this volume; replaces what was set before. For [`super::Engine::wind`] alone:
    /// a part of a volume that waits keeps its moment in a field of its own.
    pub(super) fn set_wake(&mut self, id: VolumeId, wake: Option<Instant>) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        if volume.wake == wake {
            return;
        }
        if let Some(old) = std::mem::replace(&mut volume.wake, wake) {
            self.wakes.remove(&(old, id));
        }
        if let Some(new) = wake {
            self.wakes.insert((new, id));
        }
    }

    /// Why exports that should be gone may still be there.
    pub fn stuck_exports(&self) -> Names {
        let failed = self.volumes().filter(|volume| volume.published && volume.state != State::Ready);
        let failed = failed.filter_map(|volume| Some((volume, &volume.trouble.as_ref()?.reason)));
        let failed = failed.filter(|(_, reason)| reason.code == Code::ExportStuck);
        let mut stuck = self.exported.stuck.clone();
        stuck.extend(
            failed
                .map(|(volume, reason)| format!("{}: {}", volume.intent.volume.export_name(), reason.message))
                .collect(),
        );
        stuck
    }

    /// The next time anything needs a look at the clock.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        let volumes = self.wakes.first().map(|(at, _)| *at);
        let folders = [self.exported.wake(), self.claimed.wake()];
        let others = [volumes, self.ear.wake(), self.again.wake()];
        folders.into_iter().chain(others).flatten().min()
    }

    /// The volumes whose time has come; each is handed out once.
    pub(super) fn due(&mut self, now: Instant) -> Vec<VolumeId> {
        let later = self.wakes.split_off(&(now + Duration::from_micros(1), VolumeId::MIN));
        let due: Vec<VolumeId> = std::mem::replace(&mut self.wakes, later).into_iter().map(|(_, id)| id).collect();
        for id in &due {
            if let Some(volume) = self.volumes.get_mut(id) {
                volume.wake = None;
            }
        }
        due
    }
}

/// Gives back the memory of what was many and is few.
fn shrink<K: Eq + std::hash::Hash, V>(map: &mut HashMap<K, V>) {
    const LEAST: usize = 32;
    if map.capacity() > LEAST && map.len() < map.capacity() / 8 {
        map.shrink_to(map.len() * 2);
    }
}
