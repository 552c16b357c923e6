//! Shows the progress of an operation as lines: the present phase, and since when. Pure.
//!
//! On a terminal each phase has one line. The line shows how long the phase has taken so far, and at its end how long
//! it took. Elsewhere each step is one plain line.

use jiff::Timestamp;

use super::remarks::remarks;
use super::units;
use crate::reason::StoryStep;
use crate::wire::{EventView, StepView};

/// The longest line that is rewritten, in characters. A longer line would not fit into a narrow terminal.
const LIVE_WIDTH: usize = 78;

/// Moves the cursor to the start of the line.
const BACK: &str = "\r";

/// Clears the rest of the line.
const CLEAR: &str = "\x1b[K";

/// The progress so far.
pub(super) struct Phases {
    is_live: bool,
    begun: Timestamp,
    phase: Option<Phase>,
}

/// What the operation waits for now.
struct Phase {
    party: String,
    since: Timestamp,
    text: String,
}

/// One step of the progress.
pub(super) struct Step {
    party: String,
    text: String,
    at: Timestamp,
}

impl Step {
    /// Returns the step for an operation's progress.
    pub(super) fn of_operation(step: &StepView) -> Self {
        Self { party: step.waits_for.to_string(), text: step.text.clone(), at: step.since }
    }

    /// Returns the step for a volume's event, if that event is progress of an operation.
    pub(super) fn of_volume(event: &EventView) -> Option<Self> {
        let (party, text) = match event.event.known()? {
            StoryStep::Heard => ("udev", "the kernel shows the disk, and udev has finished with it".to_owned()),
            StoryStep::Lost | StoryStep::Vanished => ("kernel", "the disk is gone".to_owned()),
            StoryStep::Proven
            | StoryStep::Matched
            | StoryStep::Recorded
            | StoryStep::Exporting
            | StoryStep::Published
            | StoryStep::Ready
            | StoryStep::Refused
            | StoryStep::Revoked
            | StoryStep::Sealed
            | StoryStep::Unsealed
            | StoryStep::Detaching
            | StoryStep::Withdrawn => ("attachd", format!("{}  {}", event.event, remarks(event))),
            _ => return None,
        };
        Some(Self { party: party.to_owned(), text: text.trim_end().to_owned(), at: event.at })
    }
}

impl Phases {
    /// Starts the output. `is_live`: the output is a terminal.
    pub(super) fn new(is_live: bool, begun: Timestamp) -> Self {
        Self { is_live, begun, phase: None }
    }

    /// Returns what to write for this step.
    pub(super) fn step(&mut self, step: Step) -> String {
        let Step { party, text, at } = step;
        let same = self.phase.as_ref().filter(|phase| phase.party == party);
        if same.is_some_and(|phase| phase.text == text) {
            return String::new();
        }
        let (before, since) = match same.map(|phase| phase.since) {
            Some(since) => (String::new(), since),
            None => (self.end(at), at),
        };
        let phase = Phase { party, since, text };
        let now = if self.is_live { phase.live(at) } else { plain(self.begun, &phase, at) };
        self.phase = Some(phase);
        before + &now
    }

    /// Returns what to write when time has passed.
    pub(super) fn tick(&self, now: Timestamp) -> String {
        self.phase.as_ref().filter(|_| self.is_live).map_or_else(String::new, |phase| phase.live(now))
    }

    /// Returns what to write at the end of a phase.
    pub(super) fn end(&mut self, at: Timestamp) -> String {
        match self.phase.take().filter(|_| self.is_live) {
            Some(phase) => format!("{BACK}{}{CLEAR}\n", phase.line(at)),
            None => String::new(),
        }
    }
}

impl Phase {
    fn line(&self, now: Timestamp) -> String {
        // The time of an event and that of the operation can differ for a moment.
        let took = units::between(Some(self.since), Some(now.max(self.since)));
        let took = took.trim_start_matches('+');
        format!("{:<8}{took:>10}  {}", self.party, self.text)
    }

    fn live(&self, now: Timestamp) -> String {
        let line: String = self.line(now).chars().take(LIVE_WIDTH).collect();
        format!("{BACK}{line}{CLEAR}")
    }
}

fn plain(begun: Timestamp, phase: &Phase, at: Timestamp) -> String {
    let time = units::milliseconds(Some(begun), Some(at.max(begun)));
    format!("{time:>12}  {:<8}  {}\n", phase.party, phase.text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Party;

    fn at(millisecond: i64) -> Timestamp {
        Timestamp::from_millisecond(1_800_000_000_000 + millisecond).unwrap()
    }

    fn operation(party: Party, text: &str, since: i64) -> Step {
        Step::of_operation(&StepView {
            name: "attach".into(),
            waits_for: party,
            text: text.to_owned(),
            since: at(since),
            job_id: None,
            cancellable: false,
        })
    }

    fn volume(event: &'static str, detail: &str, millisecond: i64) -> Option<Step> {
        let id: crate::identity::VolumeId = "b3bb9310-1b59-4f62-97e8-cefffdfe3804".parse().unwrap();
        Step::of_volume(&EventView {
            id: 1,
            at: at(millisecond),
            volume_id: id,
            serial: id.serial(),
            event: event.into(),
            detail: detail.to_owned(),
            state: crate::volume::State::Ready,
            reason: None,
        })
    }

    fn attach(phases: &mut Phases) -> String {
        let steps = [
            Some(operation(Party::Cloud, "CloudStack attaches the volume", 2)),
            Some(operation(Party::Cloud, "CloudStack attaches the volume", 2)),
            volume("attaching", "", 3),
            volume("heard", "", 812),
            volume("proven", "7:1", 813),
            volume("ready", "1 GiB", 815),
        ];
        let told: String = steps.into_iter().flatten().map(|step| phases.step(step)).collect();
        told + &phases.end(at(816))
    }

    #[test]
    fn in_a_file_each_step_is_a_line_with_the_time_since_the_operation_began() {
        let told = attach(&mut Phases::new(false, at(0)));
        let expected = "      2.0 ms  cloud     CloudStack attaches the volume
    812.0 ms  udev      the kernel shows the disk, and udev has finished with it
    813.0 ms  attachd   proven  7:1
    815.0 ms  attachd   ready  1 GiB\n";
        assert_eq!(told, expected);
    }

    #[test]
    fn on_a_terminal_each_part_of_the_way_is_one_line_with_how_long_it_took() {
        let mut phases = Phases::new(true, at(0));
        let told = attach(&mut phases);
        let lines: Vec<&str> = told.split('\n').map(|line| line.rsplit(BACK).next().unwrap()).collect();
        let expected = [
            "cloud     810.0 ms  CloudStack attaches the volume\x1b[K",
            "udev        1.0 ms  the kernel shows the disk, and udev has finished with it\x1b[K",
            "attachd     3.0 ms  ready  1 GiB\x1b[K",
            "",
        ];
        assert_eq!(lines, expected);
        assert_eq!(phases.tick(at(900)), "", "nothing is under way any more");
    }

    #[test]
    fn the_line_of_the_present_part_shows_how_long_it_has_taken_and_never_wraps() {
        let mut phases = Phases::new(true, at(0));
        phases.step(operation(Party::Cloud, &"long ".repeat(40), 0));
        let line = phases.tick(at(12_345));
        assert!(line.starts_with("\rcloud       12.3 s  long") && line.chars().count() < 84, "{line:?}");
        assert_eq!(Phases::new(false, at(0)).tick(at(1)), "", "elsewhere nothing is written again");
    }
}
