//! Reports what happened to a volume to subscribers, to the journal and to the store.

use std::sync::Arc;

use jiff::Timestamp;

use super::answers::Event;
use super::events::Events;
use super::tools::Truth;
use super::volume::Note;
use super::world::World;
use crate::clock;
use crate::device::facts::Facts;
use crate::identity::VolumeId;
use crate::reason::{Severity, StoryStep};
use crate::store::News;
use crate::volume::{Entry, Reason, State};

/// Reports what happened to volumes.
pub(super) struct Story {
    pub(super) events: Events,
    truth: Arc<dyn Truth>,
    /// Volumes of which news are posted to the store after this turn.
    unposted: Vec<VolumeId>,
}

impl Story {
    pub(super) fn new(events: Events, truth: Arc<dyn Truth>) -> Self {
        Self { events, truth, unposted: Vec::new() }
    }

    /// Sets a volume's state, and reports it if it has changed.
    pub(super) fn stand(&mut self, world: &mut World, id: VolumeId, state: State, reason: Option<Reason>) {
        let Some(volume) = world.volume(id) else { return };
        if volume.state == state && volume.reason == reason {
            return;
        }
        let late = state == State::Matched
            && volume.mapping.is_none()
            && volume.intent.deadline.is_some_and(|deadline| deadline <= world.clock.steady());
        let silent = volume.state != state && matches!(state, State::Matched | State::Exporting) && reason.is_none();
        let detail = reason.as_ref().map(|reason| format!("{}: {}", reason.code, reason.message));
        world.stand_silently(id, state, reason);
        if late {
            self.note(world, id, StoryStep::Late, "the disk came after the deadline".to_owned());
        }
        // The steps in between (proven, recorded, published) say the same with more detail.
        if !silent {
            self.note(world, id, state.step(), detail.unwrap_or_default());
        }
    }

    pub(super) fn note(&mut self, world: &mut World, id: VolumeId, event: StoryStep, detail: String) {
        self.note_at(world, id, world.clock.wall(), event, detail);
    }

    pub(super) fn note_at(&mut self, world: &mut World, id: VolumeId, at: Timestamp, event: StoryStep, detail: String) {
        // The time is rounded as the store keeps it.
        let at = clock::whole(at);
        let Some(volume) = world.volume_mut(id) else { return };
        let serial = volume.intent.serial();
        let (state, reason) = (volume.state, volume.reason.clone());
        let (by, asked) = (volume.departure.user(), volume.departure.leaving.is_closed());
        volume.notes.push(Note { entry: Entry { at, event: event.into(), detail: detail.clone() }, by, asked });
        self.events.tell(|number| Event {
            id: number,
            at,
            volume_id: id,
            serial,
            event: event.into(),
            detail,
            state,
            reason,
        });
    }

    /// Reports a step that is recorded already, with what it has changed.
    pub(super) fn note_recorded(&mut self, world: &mut World, id: VolumeId, entry: Entry) {
        let Some(volume) = world.volume(id) else { return };
        let (state, reason, serial) = (volume.state, volume.reason.clone(), volume.intent.serial());
        let note = Note { entry: entry.clone(), by: volume.departure.user(), asked: true };
        let disk = world.table.with_serial(serial).next().map(|device| &device.facts);
        log(id, state, disk, &[note]);
        let Entry { at, event, detail } = entry;
        self.events.tell(|number| Event { id: number, at, volume_id: id, serial, event, detail, state, reason });
    }

    /// Handles that a volume waits for nothing but events: its news are posted to the store after this turn, and its
    /// timer is set.
    pub(super) fn rest(&mut self, world: &mut World, id: VolumeId) {
        let Some(volume) = world.volume_mut(id) else { return };
        // A state that may still be refused is not written, because a start would act on it.
        let undecided = volume.departure.leaving.is_closed() && !volume.departure.leaving.is_on_record();
        if !undecided && std::mem::take(&mut volume.unwritten) {
            volume.news = Some(News::Stand(volume.state, volume.reason.clone(), volume.since));
        }
        self.unposted.push(id);
        world.wind(id);
    }

    /// Returns whether there is anything to post to the store.
    pub(super) fn has_news(&self) -> bool {
        !self.unposted.is_empty()
    }

    /// Posts to the store the news of the volumes that came to rest in this turn.
    pub(super) fn post_all(&mut self, world: &mut World) {
        for id in std::mem::take(&mut self.unposted) {
            self.post(world, id);
        }
    }

    /// Posts news and the unwritten notes to the store. Nobody waits for them.
    pub(super) fn post(&mut self, world: &mut World, id: VolumeId) {
        let Some(volume) = world.volume_mut(id) else { return };
        let mut news: Vec<News> = volume.news.take().into_iter().collect();
        let notes = std::mem::take(&mut volume.notes);
        let state = volume.state;
        let disk = world.table.with_serial(id.serial()).next().map(|device| &device.facts);
        log(id, state, disk, &notes);
        news.extend(notes.into_iter().map(|note| News::Note(note.entry)));
        if !news.is_empty() {
            self.truth.post(id, news);
        }
    }
}

/// Writes one journal entry for each step, with the step's severity. This happens together with the store's copy,
/// because formatting on the way to `ready` would cost noticeable time.
fn log(id: VolumeId, state: State, disk: Option<&Facts>, notes: &[Note]) {
    macro_rules! entry {
        ($level:ident, $note:ident, $by:ident) => {
            tracing::$level!(
                EVENT = $note.event.name(),
                VOLUME_ID = %id,
                SERIAL = %id.serial(),
                EXPORT = id.export_name(),
                STATE = %state,
                DEVNAME = disk.map(|disk| format!("/dev/{}", disk.name)),
                DISKSEQ = disk.map(|disk| disk.diskseq),
                UID = $by.and_then(|by| by.0),
                AT = %$note.at,
                "{} {}", $note.event.name(), $note.detail
            )
        };
    }
    for Note { entry: note, by, asked } in notes {
        match note.event.known().map_or(Severity::Info, |step| step.severity(*asked)) {
            Severity::Warning => entry!(warn, note, by),
            // tracing has no level in between. The journal's writer knows the step.
            Severity::Notice | Severity::Info => entry!(info, note, by),
        }
    }
}
