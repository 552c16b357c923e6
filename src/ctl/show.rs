//! `attachctl show`.

use std::fmt::Write;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use jiff::Timestamp;
use serde::Deserialize;

use super::answers::{Entry, Evidence, Volume};
use super::client::{Answer, Client};
use super::failure::{Failure, Standing};
use super::output::Output;
use super::table::Table;
use super::units;
use crate::identity::VolumeId;
use crate::volume::State;

/// Which volume.
#[derive(clap::Args)]
pub(super) struct Options {
    /// The CloudStack volume's UUID.
    volume_id: VolumeId,
    /// Stay until it is in this state.
    #[arg(long, value_name = "STATE", value_parser = PossibleValuesParser::new(State::ALL.map(State::as_str)))]
    wait: Option<String>,
    /// How long to stay, at most; up to an hour.
    #[arg(long, value_name = "SECONDS", requires = "wait", default_value_t = 60,
        value_parser = clap::value_parser!(u32).range(0..=3600))]
    timeout: u32,
}

pub(super) async fn run(client: &Client, options: &Options, output: &Output) -> Result<(), Failure> {
    let answer = match &options.wait {
        None => client.volume(options.volume_id).await?,
        Some(state) => wait(client, options.volume_id, state, options.timeout).await?,
    };
    output.answer(&answer, told)
}

/// attachd itself waits, and answers as soon as the state is reached.
async fn wait(client: &Client, volume: VolumeId, state: &str, seconds: u32) -> Result<Answer, Failure> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct TimedOut {
        code: String,
        details: Standing,
    }

    let query = [("wait", state.to_owned()), ("timeout_seconds", seconds.to_string())];
    let patience = Duration::from_secs(seconds.into());
    let answer = client.get_any(&format!("volumes/{volume}"), &query, patience).await?;
    if answer.status == 200 {
        return Ok(answer);
    }
    match answer.read::<TimedOut>() {
        Ok(timed_out) if timed_out.code == "WAIT_TIMEOUT" => {
            Err(Failure::waited(&volume.to_string(), &timed_out.details, state, seconds))
        }
        _ => Err(Failure::from_answer(answer.status, &answer.text)),
    }
}

fn told(volume: &Volume) -> String {
    let mut lines = Lines::default();
    lines.line("volume", &volume.id);
    lines.line("serial", &volume.serial);
    lines.line("vm", if volume.vm_id.is_empty() { "unknown" } else { &volume.vm_id });
    lines.line("state", &format!("{}, since {}", volume.state, moment(volume.since)));
    if let Some(reason) = &volume.reason {
        lines.line("reason", &format!("{}: {}", reason.code, reason.message));
        lines.line("hint", &reason.hint);
    }
    lines.line("by-id path", volume.device_path.as_deref().unwrap_or("-"));
    lines.line("device", volume.device_node.as_deref().unwrap_or("-"));
    lines.line("size", &volume.size_bytes.map_or("-".to_owned(), exact));
    lines.line("export", &volume.export.name);
    lines.line("", &format!("{}, {}", volume.export.state, volume.export.uri));
    if let Some(evidence) = &volume.evidence {
        proof(&mut lines, evidence);
    }
    let _ = write!(lines.0, "timeline\n{}", story(&volume.timeline));
    lines.0
}

/// What was checked, when, in which boot.
fn proof(lines: &mut Lines, evidence: &Evidence) {
    let access = if evidence.read_only { "read-only" } else { "writable" };
    let Evidence { serial, scheme, devnum, diskseq, .. } = evidence;
    lines.line("evidence", &format!("serial {serial} (scheme {scheme})"));
    lines.line("", &format!("device {devnum}, diskseq {diskseq}, {}, {access}", exact(evidence.size_bytes)));
    lines.line("", &format!("boot {}", evidence.boot_id));
    lines.line("", &format!("checked {}", moment(evidence.at)));
}

/// Each step with the time since the one before.
fn story(timeline: &[Entry]) -> String {
    let mut table = Table::new(["  AT", "AFTER", "STEP", "DETAIL"]);
    let mut before = None;
    for entry in timeline {
        let after = units::between(before, entry.at);
        let detail = if entry.detail.is_empty() { " " } else { &entry.detail };
        table.row([format!("  {}", moment(entry.at)), after, entry.event.clone(), detail.to_owned()]);
        before = entry.at;
    }
    table.or("  nothing yet")
}

fn moment(at: Option<Timestamp>) -> String {
    at.map_or("-".to_owned(), |at| format!("{at:.6}"))
}

fn exact(size: u64) -> String {
    format!("{} ({size} bytes)", units::bytes(size))
}

/// Names on the left, what they are on the right.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn line(&mut self, name: &str, text: &str) {
        let _ = writeln!(self.0, "{name:<12}{text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeline_shows_the_time_between_steps() {
        let step = |at: &str, event: &str, detail: &str| Entry {
            at: at.parse().ok(),
            event: event.into(),
            detail: detail.into(),
        };
        let timeline = [
            step("2025-01-01T10:00:00Z", "intent", "VM 1"),
            step("2025-01-01T10:00:00.0042Z", "proven", ""),
            step("2025-01-01T10:00:30.0042Z", "ready", "10 bytes"),
        ];
        let expected = "  AT                           AFTER    STEP    DETAIL
  2025-01-01T10:00:00.000000Z  -        intent  VM 1
  2025-01-01T10:00:00.004200Z  +4.2 ms  proven
  2025-01-01T10:00:30.004200Z  +30.0 s  ready   10 bytes\n";
        assert_eq!(story(&timeline), expected);
    }

    #[test]
    fn a_volume_of_which_little_is_known_can_be_shown() {
        let volume: Volume = serde_json::from_str(r#"{"volume_id":"v","state":"waiting","news":[]}"#).unwrap();
        let text = told(&volume);
        assert!(
            text.contains("state       waiting, since -\n") && text.ends_with("timeline\n  nothing yet\n"),
            "{text}"
        );
    }
}
