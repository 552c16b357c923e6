//! `attachctl watch`.

use futures_util::StreamExt;
use serde_json::json;
use signal_hook::consts::SIGINT;

use super::client::ApiClient;
use super::failure::{Failure, UNREACHABLE};
use super::output::Output;
use super::remarks::remarks;
use super::sse::Message;
use crate::identity::VolumeId;
use crate::reason::Code;
use crate::wire::{EventView, MISSED, OPERATION, OperationView, VOLUME};

/// What to watch.
#[derive(clap::Args)]
pub(super) struct Options {
    /// Only this volume.
    volume_id: Option<VolumeId>,
}

pub(super) async fn run(client: &ApiClient, options: &Options, output: &Output) -> Result<(), Failure> {
    let mut events = client.events(options.volume_id).await?;
    let mut interrupted = signal_hook_tokio::Signals::new([SIGINT]).map_err(|error| {
        Failure::with(UNREACHABLE, Code::NoSignals, format!("cannot listen for Ctrl-C: {error}"), json!({}))
    })?;
    loop {
        tokio::select! {
            message = events.next() => tell(&message.ok_or_else(ended)?, output)?,
            _ = interrupted.next() => return Ok(()),
        }
    }
}

fn ended() -> Failure {
    let text = "attachd ended the stream of events: it was stopped or restarted";
    Failure::with(UNREACHABLE, Code::StreamEnded, text, json!({}))
}

fn tell(message: &Message, output: &Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.text(&format!("{}\n", message.data));
    }
    match message.event.as_str() {
        VOLUME => output.text(&line(&message.read()?)),
        OPERATION => output.text(&line_of_operation(&message.read()?)),
        MISSED => {
            output.remark("Some events were missed: `attachctl list` shows what is true now");
            Ok(())
        }
        _ => Ok(()),
    }
}

fn line(event: &EventView) -> String {
    let EventView { at, volume_id, event: step, state, .. } = event;
    let line = format!("{at:.3}  {volume_id}  {step:<9}  {state:<9}  {}", remarks(event));
    format!("{}\n", line.trim_end())
}

fn line_of_operation(operation: &OperationView) -> String {
    let OperationView { updated_at, volume_id, kind, status, .. } = operation;
    let place = operation.step.as_ref().map(|step| format!("{}: {}", step.waits_for, step.text));
    let what = place.or_else(|| operation.error.clone()).unwrap_or_default();
    let line = format!("{updated_at:.3}  {volume_id:<36}  {kind:<9}  {status:<9}  {what}");
    format!("{}\n", line.trim_end())
}
