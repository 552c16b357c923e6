//! The story of one volume: what was done to it and what attachd reported, with milliseconds.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use lab::{Api, Events, Volume};
use serde_json::Value;

use crate::check::print_folded;

/// Longer than anything that works takes.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// One line of the story.
#[derive(Debug)]
struct Step {
    at: Timestamp,
    what: String,
    detail: String,
    /// Whether it was done from outside, and not reported by attachd.
    done: bool,
    told: bool,
}

/// A volume and everything that happened to it since the story began.
#[derive(Debug)]
pub(crate) struct Story {
    pub(crate) volume: Volume,
    events: Events,
    steps: Vec<Step>,
    /// Time zero, and the time of the last line.
    told: Option<(Timestamp, Timestamp)>,
}

impl Story {
    /// Subscribes to the daemon's events, so that no later event is missed.
    pub(crate) fn begin(api: &Api, volume: Volume) -> Result<Self> {
        println!("     volume {}, serial {}", volume.id, volume.serial);
        Ok(Self { volume, events: api.events()?, steps: Vec::new(), told: None })
    }

    /// Subscribes to a daemon that was started again.
    pub(crate) fn follow_again(&mut self, api: &Api) -> Result<()> {
        self.events = api.events()?;
        Ok(())
    }

    /// Notes an action from outside just before it is done, and returns the time.
    pub(crate) fn doing(&mut self, what: &str) -> Timestamp {
        let at = Timestamp::now();
        self.done(at, what);
        at
    }

    /// Notes an action from outside that happened at a known time.
    pub(crate) fn done(&mut self, at: Timestamp, what: &str) {
        self.steps.push(Step { at, what: what.to_owned(), detail: String::new(), done: true, told: false });
    }

    /// Reads events until this volume's next one with that name, and returns it.
    pub(crate) fn until(&mut self, name: &str) -> Result<Value> {
        let deadline = std::time::Instant::now() + SOON;
        loop {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            let event = self.events.next(left)?;
            let event = event.with_context(|| format!("no event \"{name}\" of {} came", self.volume.id))?;
            ensure!(event.name != "missed", "the stream of events lost some: {}", event.data);
            // A whole operation is told, too: its steps are in the story already.
            if event.data["volume_id"] == self.volume.id && event.data["event"].is_string() {
                self.add(&event.data)?;
                if event.data["event"] == name {
                    return Ok(event.data);
                }
            }
        }
    }

    /// Adds what the daemon's own timeline has and the stream did not show, and returns the volume.
    pub(crate) fn read(&mut self, api: &Api) -> Result<Value> {
        let shown = api.get(&format!("/api/v1/volumes/{}", self.volume.id))?.expect(200)?;
        for entry in shown["timeline"].as_array().context("a volume has a timeline")? {
            self.add(entry)?;
        }
        Ok(shown)
    }

    /// Adds one entry of the timeline or the stream; both may show the same one. The store keeps microseconds.
    fn add(&mut self, entry: &Value) -> Result<()> {
        let at = time_of(entry)?;
        let what = entry["event"].as_str().context("an entry has a name")?;
        let same = |step: &Step| !step.done && step.what == what && step.at.as_microsecond() == at.as_microsecond();
        if !self.steps.iter().any(same) {
            let detail = entry["detail"].as_str().unwrap_or_default().to_owned();
            self.steps.push(Step { at, what: what.to_owned(), detail, done: false, told: false });
        }
        Ok(())
    }

    /// Prints what was not printed yet. Time zero is when the disk's event was received, else the first step. The
    /// second column is the time since the previous line.
    pub(crate) fn tell(&mut self) {
        self.steps.sort_by_key(|step| step.at);
        let Some(first) = self.steps.first().map(|step| step.at) else { return };
        let heard = self.steps.iter().find(|step| step.what == "heard").map_or(first, |step| step.at);
        let (zero, mut before) = self.told.unwrap_or((heard, first));
        for step in self.steps.iter_mut().filter(|step| !step.told) {
            step.told = true;
            let mark = if step.done { '>' } else { ' ' };
            let heading = format!("   {:>+11.3} ms {:>10.3} {mark} ", millis(zero, step.at), millis(before, step.at));
            if step.done {
                println!("{heading}{}", step.what);
            } else {
                print_folded(&format!("{heading}{:<9} ", step.what), &step.detail);
            }
            before = step.at;
        }
        self.told = Some((zero, before));
    }
}

/// Returns when an event or an entry of a timeline happened.
pub(crate) fn time_of(entry: &Value) -> Result<Timestamp> {
    entry["at"].as_str().context("an entry has a time")?.parse().context("reading a time")
}

/// Returns the milliseconds from one time to another; negative if the other is earlier.
pub(crate) fn millis(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64() * 1000.0
}
