//! Everything that the engine knows. Only the engine writes it; others read it through [`super::Handle::read`].

use std::collections::{BTreeMap, BTreeSet, HashMap, hash_map};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::admissions::{Admissions, Standing};
use super::answers::{Accepted, Reply};
use super::claimed::Claimed;
use super::errands::Errands;
use super::exported::Exported;
use super::handshakes::Handshakes;
use super::looks::Looks;
use super::telling::Telling;
use super::tools::Helper;
use super::udevd::{self, Ear};
use super::volume::{Disk, Ticket};
pub use super::volume::{Shown, Volume};
use crate::clock::Clock;
use crate::config::Limits;
use crate::device::DevNum;
use crate::device::evidence::Ground;
use crate::device::table::{Device, Table};
use crate::export::server::Server;
use crate::folder::Names;
use crate::identity::{Serial, VolumeId};
use crate::reason::Code;
use crate::store::Change;
use crate::volume::{Intent, Reason, State};

/// The whole state of the engine.
pub struct World {
    /// What evidence is compared with.
    pub ground: Ground,
    /// The present disks.
    pub table: Table,
    /// The state of the NBD server. `None`: not known yet.
    pub server: Option<Server>,
    /// What handshakes have shown about the server.
    pub handshakes: Handshakes,
    /// What the NBD server was notified of.
    pub telling: Telling,
    /// Whether udevd works.
    pub ear: Ear,
    /// Returns the time.
    pub(super) clock: Arc<dyn Clock>,
    /// The client of attachd-helper.
    pub helper: Arc<dyn Helper>,
    /// How often everything was read, and the last reason.
    pub resyncs: Resyncs,
    /// The state of the folders that the NBD server reads.
    pub exported: Exported,
    /// The state of the folder of claims.
    pub claimed: Claimed,
    /// The readings of disks.
    pub(super) looks: Looks,
    /// Intents that are not durable yet.
    pub(super) admissions: Admissions,
    /// The requests to the helper to retrigger udev.
    pub(super) errands: Errands,
    /// The volumes by id, so that they can be visited in pieces. They are boxed because a node of the tree has eleven
    /// entries, half of which are usually empty.
    volumes: BTreeMap<VolumeId, Box<Volume>>,
    by_serial: HashMap<Serial, VolumeId>,
    /// How many volumes are in each state. This is kept because it is needed at each event.
    counts: BTreeMap<State, usize>,
    /// How many intents each user has.
    by_user: HashMap<Option<u32>, usize>,
    /// When which volume's timer ends, by the clock that nobody can set. Empty when no timer is set.
    wakes: BTreeSet<(Instant, VolumeId)>,
}

/// The history of resyncs.
#[derive(Debug, Clone, Default)]
pub struct Resyncs {
    /// The number of resyncs since the start.
    pub count: u64,
    /// The reason for the last one.
    pub last_reason: &'static str,
    /// When the last one was complete.
    pub last_at: Option<Timestamp>,
    /// How often events were lost.
    pub losses: u64,
}

impl World {
    /// Returns a world without volumes and disks.
    pub(super) fn new(ground: Ground, helper: Arc<dyn Helper>, clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
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
            looks: Looks::default(),
            admissions: Admissions::default(),
            errands: Errands::default(),
            volumes: BTreeMap::new(),
            by_serial: HashMap::new(),
            by_user: HashMap::new(),
            counts: State::ALL.map(|state| (state, 0)).into(),
            wakes: BTreeSet::new(),
        }
    }

    /// Returns the volume of that id.
    pub fn volume(&self, id: VolumeId) -> Option<&Volume> {
        self.volumes.get(&id).map(Box::as_ref)
    }

    /// Returns the volume of this serial. There is at most one.
    pub fn volume_of(&self, serial: Serial) -> Option<VolumeId> {
        self.by_serial.get(&serial).copied()
    }

    /// Returns the volume of this serial that is wanted, or is being admitted.
    pub(super) fn wanted(&self, serial: Serial) -> Option<VolumeId> {
        self.volume_of(serial).or_else(|| self.admissions.of(serial))
    }

    /// Handles an intent. Returns whether it must be admitted now. Otherwise the answer is given, or comes with
    /// another intent's.
    pub(super) fn ask(
        &mut self,
        (intent, also): (Intent, Vec<Change>),
        reply: Reply<Accepted>,
        limits: Limits,
        vm_id: &str,
    ) -> bool {
        let known = self.volumes.get(&intent.volume).map(|known| (&known.intent, &known.departure.leaving));
        let standing = Standing {
            known,
            of_serial: self.by_serial.get(&intent.serial()).copied(),
            all: self.volumes.len(),
            of_user: self.by_user.get(&intent.uid).copied().unwrap_or(0),
            limits,
            vm_id,
        };
        self.admissions.ask((intent, also), reply, &standing)
    }

    /// Returns the serial of a disk that is marked although nobody wants it.
    pub(super) fn marked_in_vain(&self, disk: &Device) -> Option<Serial> {
        let marked = disk.facts.group() == Some(self.ground.nbd_gid);
        disk.facts.serial().filter(|serial| marked && self.wanted(*serial).is_none())
    }

    /// Returns whether udevd owes an event of a disk with this serial for too long, or of any disk if udevd is
    /// silent.
    pub(super) fn udevd_owes(&self, serial: Serial) -> bool {
        self.table.with_serial(serial).any(|disk| self.ear.owes(disk.facts.devnum))
    }

    /// Returns the present disks at which udevd is held up while it reports others, and since when, the longest
    /// first.
    pub fn held_up(&self) -> Vec<(String, Timestamp)> {
        self.ear.held_up(&self.table, udevd::at_work)
    }

    /// Returns the sequence number of the disk that has this number: of the disk that was read, or else of the
    /// recorded one.
    pub(super) fn known_diskseq(&self, devnum: DevNum) -> Option<u64> {
        let read = self.table.of(devnum).map(|device| device.facts.diskseq);
        let on_record = || {
            let volumes = self.mapped_to(devnum).into_iter().filter_map(|id| self.volume(id));
            volumes.filter(|volume| volume.published).find_map(|volume| Some(volume.mapping.as_ref()?.diskseq))
        };
        read.or_else(|| self.looks.is_unread(devnum).then(on_record).flatten())
    }

    /// Returns every volume, by id. There may be many, so one turn may only do what is quick for each.
    pub fn volumes(&self) -> impl ExactSizeIterator<Item = &Volume> {
        self.volumes.values().map(Box::as_ref)
    }

    /// Returns every volume's id, in order.
    pub fn volume_ids(&self) -> impl Iterator<Item = VolumeId> {
        self.volumes.keys().copied()
    }

    /// Returns the volumes after this id, by id. Without an id, returns all.
    pub fn volumes_after(&self, id: Option<VolumeId>) -> impl Iterator<Item = &Volume> {
        let from = id.map_or(Bound::Unbounded, Bound::Excluded);
        self.volumes.range((from, Bound::Unbounded)).map(|(_, volume)| &**volume)
    }

    /// Returns the volumes whose mapping has this number. This visits all volumes, for the rare case that no serial
    /// identifies the volume.
    pub(super) fn mapped_to(&self, devnum: DevNum) -> Vec<VolumeId> {
        let to = |volume: &&Volume| volume.mapping.as_ref().is_some_and(|mapping| mapping.devnum == devnum);
        self.volumes().filter(to).map(|volume| volume.intent.volume).collect()
    }

    /// Returns why nothing newer can be known of the volume's disk.
    pub(super) fn unread(&self, volume: &Volume, present: &[&Device]) -> Option<&str> {
        let (devnum, diskseq) = match (present, &volume.mapping) {
            ([device], _) => (device.facts.devnum, device.facts.diskseq),
            // No serial was read since the start, but the number still belongs to the recorded disk.
            ([], Some(mapping)) if mapping.boot_id == self.ground.boot_id => (mapping.devnum, mapping.diskseq),
            _ => return None,
        };
        self.table.unread(devnum, diskseq)
    }

    /// Returns how many volumes are in each state. States without volumes have 0.
    pub fn counts(&self) -> &BTreeMap<State, usize> {
        &self.counts
    }

    /// Moves a volume to another state.
    fn set_state(&mut self, id: VolumeId, state: State) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        let old = std::mem::replace(&mut volume.state, state);
        self.count(old, |n| n - 1);
        self.count(state, |n| n + 1);
    }

    /// Ends the state `ready` of a volume whose export is gone, before anybody can ask. What comes next is decided
    /// after that.
    pub(super) fn stand_unserved(&mut self, id: VolumeId) {
        let Some(volume) = self.volume(id) else { return };
        let (state, reason) = match volume.state {
            State::Detaching => return,
            _ if volume.departure.leaving.is_closed() => (State::Detaching, Some(volume.departure.reason())),
            State::Ready => (State::Exporting, None),
            _ => return,
        };
        self.stand_silently(id, state, reason);
    }

    /// Sets the state of a volume whose withdrawal was refused. It is on its way to being served, as any volume
    /// without an export.
    pub(super) fn stand_staying(&mut self, id: VolumeId) {
        let Some(volume) = self.volume(id).filter(|volume| volume.state == State::Detaching) else { return };
        self.stand_silently(id, volume.state_when_given_back(), None);
    }

    /// Sets a volume's state without reporting it.
    pub(super) fn stand_silently(&mut self, id: VolumeId, state: State, reason: Option<Reason>) {
        let now = self.clock.wall();
        let Some(volume) = self.volume_mut(id) else { return };
        volume.since = volume.stands_since(state, reason.as_ref(), now);
        volume.reason = reason;
        volume.unwritten = true;
        self.set_state(id, state);
    }

    /// Returns every volume for a change. In one turn only what is quick for each may be changed, and nothing that
    /// others count or look up.
    pub(super) fn volumes_mut(&mut self) -> impl Iterator<Item = &mut Volume> {
        self.volumes.values_mut().map(Box::as_mut)
    }

    /// Allows udev to be asked once more about every disk, and retries failed preparations. A disk that was in use
    /// may be free by `now`, too.
    pub(super) fn try_again(&mut self, now: Instant) {
        for volume in self.volumes.values_mut() {
            if let Some(trouble) = volume.trouble.as_mut().filter(|trouble| trouble.disk.is_some()) {
                trouble.again_at = now;
            }
            (volume.retriggered, volume.helper_again) = (None, None);
            volume.preparation.forgive(volume.judged);
        }
    }

    fn count(&mut self, state: State, change: impl FnOnce(usize) -> usize) {
        let count = self.counts.entry(state).or_default();
        *count = change(*count);
    }

    /// Returns the ticket of the volume's present life.
    pub(super) fn ticket(&self, id: VolumeId) -> Option<Ticket> {
        self.volumes.get(&id).map(|volume| Ticket { volume: id, instance: volume.instance })
    }

    /// Returns whether the ticket is of the volume's present life.
    pub(super) fn holds(&self, ticket: Ticket) -> bool {
        self.ticket(ticket.volume) == Some(ticket)
    }

    pub(super) fn volume_mut(&mut self, id: VolumeId) -> Option<&mut Volume> {
        self.volumes.get_mut(&id).map(Box::as_mut)
    }

    /// Returns every volume's id. Volumes whose disk is present come first, because somebody waits for them.
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

    /// Records a failed step of a volume with its reason, and schedules the retry.
    pub(super) fn trouble(&mut self, id: VolumeId, reason: Reason) {
        let now = self.clock.now();
        if let Some(volume) = self.volume_mut(id) {
            volume.fail(reason, None, now);
        }
    }

    /// As [`Self::trouble`], for a step that failed because of this disk.
    pub(super) fn trouble_with(&mut self, id: VolumeId, reason: Reason, disk: Disk) {
        let now = self.clock.now();
        if let Some(volume) = self.volume_mut(id) {
            volume.fail(reason, Some(disk), now);
        }
    }

    /// Makes only a new reading of this volume's disk count from now on.
    pub(super) fn distrust(&mut self, id: VolumeId) {
        let last = self.looks.last();
        if let Some(volume) = self.volume_mut(id) {
            volume.look_after = last;
        }
    }

    /// Sets a volume's timer. Each part of a waiting volume keeps its time in a field of its own.
    pub(super) fn wind(&mut self, id: VolumeId) {
        let (steady, now) = (self.clock.steady(), self.clock.now());
        let wake = self.volume(id).and_then(|volume| volume.wakes_at(steady, now));
        self.set_wake(id, wake);
    }

    fn set_wake(&mut self, id: VolumeId, wake: Option<Instant>) {
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

    /// Returns why exports that should be gone may still exist.
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

    /// Returns when the next timer ends.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        let volumes = self.wakes.first().map(|(at, _)| *at);
        let folders = [self.exported.upkeep.wake(), self.claimed.upkeep.wake()];
        let others = [volumes, self.ear.wake(), self.looks.wake()];
        folders.into_iter().chain(others).flatten().min()
    }

    /// Returns the volumes whose timer has ended. Each is returned once.
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

/// Gives back the memory of a map that was large and is small.
fn shrink<K: Eq + std::hash::Hash, V>(map: &mut HashMap<K, V>) {
    const LEAST: usize = 32;
    if map.capacity() > LEAST && map.len() < map.capacity() / 8 {
        map.shrink_to(map.len() * 2);
    }
}
