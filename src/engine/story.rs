//! What happened to a volume, told to whoever listens, to the journal and to the store.

use jiff::Timestamp;

use super::answers::Event;
use super::core::Engine;
use super::volume::Note;
use crate::clock;
use crate::device::facts::Facts;
use crate::identity::VolumeId;
use crate::reason::{Severity, StoryStep};
use crate::store::News;
use crate::volume::{Entry, Reason, State};

impl Engine {
    /// Notes where a volume stands, and tells everybody when that has changed.
    pub(super) fn stand(&mut self, id: VolumeId, state: State, reason: Option<Reason>) {
        let Some(volume) = self.world.volume(id) else { return };
        if volume.state == state && volume.reason == reason {
            return;
        }
        let late = state == State::Matched
            && volume.mapping.is_none()
            && volume.intent.deadline.is_some_and(|deadline| deadline <= self.steps.tools.clock.steady());
        let silent = volume.state != state && matches!(state, State::Matched | State::Exporting) && reason.is_none();
        let detail = reason.as_ref().map(|reason| format!("{}: {}", reason.code, reason.message));
        self.stand_silently(id, state, reason);
        if late {
            self.note(id, StoryStep::Late, "the disk came after the deadline".to_owned());
        }
        // The steps between say the same with more to it: proven, recorded, published.
        if !silent {
            self.note(id, state.step(), detail.unwrap_or_default());
        }
    }

    /// Its export is gone: it is `ready` no more, before anybody can ask. What comes next is decided after that.
    pub(super) fn stand_unserved(&mut self, id: VolumeId) {
        let Some(volume) = self.world.volume(id) else { return };
        let (state, reason) = match volume.state {
            State::Detaching => return,
            _ if volume.departure.leaving.is_closed() => (State::Detaching, Some(volume.departure.reason())),
            State::Ready => (State::Exporting, None),
            _ => return,
        };
        self.stand_silently(id, state, reason);
    }

    /// Its withdrawal was refused: it is on its way to being served, as any volume whose export is not there yet.
    pub(super) fn stand_staying(&mut self, id: VolumeId) {
        let Some(volume) = self.world.volume(id).filter(|volume| volume.state == State::Detaching) else { return };
        self.stand_silently(id, volume.state_when_given_back(), None);
    }

    fn stand_silently(&mut self, id: VolumeId, state: State, reason: Option<Reason>) {
        let now = self.steps.tools.clock.wall();
        let Some(volume) = self.world.volume_mut(id) else { return };
        volume.since = volume.stands_since(state, reason.as_ref(), now);
        volume.reason = reason;
        volume.unwritten = true;
        self.world.set_state(id, state);
    }

    pub(super) fn note(&mut self, id: VolumeId, event: StoryStep, detail: String) {
        self.note_at(id, self.steps.tools.clock.wall(), event, detail);
    }

    pub(super) fn note_at(&mut self, id: VolumeId, at: Timestamp, event: StoryStep, detail: String) {
        // As it is kept.
        let at = clock::whole(at);
        let Some(volume) = self.world.volume_mut(id) else { return };
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

    /// Tells of a step that is on record already, with what it has changed.
    pub(super) fn note_recorded(&mut self, id: VolumeId, entry: Entry) {
        let Some(volume) = self.world.volume(id) else { return };
        let (state, reason, serial) = (volume.state, volume.reason.clone(), volume.intent.serial());
        let note = Note { entry: entry.clone(), by: volume.departure.user(), asked: true };
        let disk = self.world.table.with_serial(serial).next().map(|device| &device.facts);
        log(id, state, disk, &[note]);
        let Entry { at, event, detail } = entry;
        self.events.tell(|number| Event { id: number, at, volume_id: id, serial, event, detail, state, reason });
    }

    /// What came to rest in this turn is handed to the store.
    pub(super) fn post_all(&mut self) {
        for id in std::mem::take(&mut self.unposted) {
            self.post(id);
        }
    }

    /// Hands news and the unwritten notes to the store; nobody waits for them.
    pub(super) fn post(&mut self, id: VolumeId) {
        let Some(volume) = self.world.volume_mut(id) else { return };
        let mut news: Vec<News> = volume.news.take().into_iter().collect();
        let notes = std::mem::take(&mut volume.notes);
        let state = volume.state;
        let disk = self.world.table.with_serial(id.serial()).next().map(|device| &device.facts);
        log(id, state, disk, &notes);
        news.extend(notes.into_iter().map(|note| News::Note(note.entry)));
        if !news.is_empty() {
            self.steps.tools.truth.post(id, news);
        }
    }
}

/// One entry for each step, as loud as it deserves. Written with the store's copy: formatting on the way to `ready` would be
/// felt.
pub(super) fn log(id: VolumeId, state: State, disk: Option<&Facts>, notes: &[Note]) {
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
            // There is no such level between: the journal's writer knows the step.
            Severity::Notice | Severity::Info => entry!(info, note, by),
        }
    }
}
