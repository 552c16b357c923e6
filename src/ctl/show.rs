//! `attachctl show`.

use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use jiff::Timestamp;
use serde::Deserialize;

use super::client::{ApiAnswer, ApiClient};
use super::failure::Failure;
use super::lines::Lines;
use super::output::Output;
use super::table::TextTable;
use super::units;
use crate::identity::VolumeId;
use crate::reason::Code;
use crate::volume::State;
use crate::wire::{EntryView, ErrorBody, EvidenceView, VolumeView, WaitTimeoutDetails};

/// A parser for the name of a state.
fn state() -> impl TypedValueParser<Value = State> {
    PossibleValuesParser::new(State::ALL.map(State::as_str))
        .try_map(|name| State::from_name(&name).ok_or("there is no such state"))
}

/// Which volume to show.
#[derive(clap::Args)]
pub(super) struct Options {
    /// The CloudStack volume's UUID.
    volume_id: VolumeId,
    /// Wait until the volume is in this state.
    #[arg(long, value_name = "STATE", value_parser = state())]
    wait: Option<State>,
    /// The time limit of the wait, at most an hour.
    #[arg(long, value_name = "SECONDS", requires = "wait", default_value_t = 60,
        value_parser = clap::value_parser!(u32).range(0..=3600))]
    timeout: u32,
}

pub(super) async fn run(client: &ApiClient, options: &Options, output: &Output) -> Result<(), Failure> {
    let answer = match options.wait {
        None => client.volume(options.volume_id).await?,
        Some(state) => wait(client, options.volume_id, state, options.timeout).await?,
    };
    let words = |volume: &VolumeView| match &volume.timeline {
        Some(timeline) => Ok(in_words(volume, timeline)),
        None => Err(Failure::not_understood("it has no `timeline`")),
    };
    output.answer_and_read(&answer, words).map(drop)
}

/// Requests the volume with `?wait=`, so that attachd answers when the state is reached.
async fn wait(client: &ApiClient, volume: VolumeId, state: State, seconds: u32) -> Result<ApiAnswer, Failure> {
    let query = [("wait", state.to_string()), ("timeout_seconds", seconds.to_string())];
    let wait = Duration::from_secs(seconds.into());
    let answer = client.get_any(&format!("volumes/{volume}"), &query, wait).await?;
    if answer.status == 200 {
        return Ok(answer);
    }
    let refusal = answer.read::<ErrorBody>().ok().filter(|refusal| refusal.code == Code::WaitTimeout.into());
    let stands = refusal.and_then(|refusal| WaitTimeoutDetails::deserialize(refusal.details).ok());
    Err(stands.map_or_else(
        || Failure::from_answer(answer.status, &answer.text),
        |stands| Failure::waited(volume, &stands, state, seconds),
    ))
}

fn in_words(volume: &VolumeView, timeline: &[EntryView]) -> String {
    let mut lines = Lines::default();
    lines.line("volume", &volume.volume_id.to_string());
    lines.line("serial", volume.serial.as_str());
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
    format!("{lines}timeline\n{}", story(timeline))
}

/// Adds the lines about the evidence: what was checked, when, and in which boot.
fn proof(lines: &mut Lines, evidence: &EvidenceView) {
    let access = if evidence.read_only { "read-only" } else { "writable" };
    let EvidenceView { serial, scheme, devnum, diskseq, .. } = evidence;
    lines.line("evidence", &format!("serial {serial} (scheme {scheme})"));
    lines.line("", &format!("device {devnum}, diskseq {diskseq}, {}, {access}", exact(evidence.size_bytes)));
    lines.line("", &format!("boot {}", evidence.boot_id));
    lines.line("", &format!("checked {}", moment(evidence.at)));
}

/// Returns the story as a table; each step has the time since the previous one.
fn story(timeline: &[EntryView]) -> String {
    let mut table = TextTable::new(["  AT", "AFTER", "STEP", "DETAIL"]);
    let mut before = None;
    for entry in timeline {
        let after = units::between(before, Some(entry.at));
        let detail = if entry.detail.is_empty() { " " } else { &entry.detail };
        table.row([format!("  {}", moment(entry.at)), after, entry.event.to_string(), detail.to_owned()]);
        before = Some(entry.at);
    }
    table.or("  nothing yet")
}

fn moment(at: Timestamp) -> String {
    format!("{at:.6}")
}

fn exact(size: u64) -> String {
    format!("{} ({size} bytes)", units::bytes(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeline_shows_the_time_between_steps() {
        let step = |at: &str, event: &'static str, detail: &str| EntryView {
            at: at.parse().unwrap(),
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
    fn a_volume_without_a_step_can_be_shown() {
        assert_eq!(story(&[]), "  nothing yet\n");
    }
}
