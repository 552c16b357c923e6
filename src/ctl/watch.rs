//! `attachctl watch`.

use futures_util::StreamExt;
use serde_json::json;
use signal_hook::consts::SIGINT;

use super::answers::Event;
use super::client::Client;
use super::failure::{Failure, UNREACHABLE};
use super::output::Output;
use super::sse::Message;
use crate::identity::VolumeId;

/// What to follow.
#[derive(clap::Args)]
pub(super) struct Options {
    /// Only this volume.
    volume_id: Option<VolumeId>,
}

pub(super) async fn run(client: &Client, options: &Options, output: &Output) -> Result<(), Failure> {
    let mut events = client.events(options.volume_id).await?;
    let mut interrupted = signal_hook_tokio::Signals::new([SIGINT]).map_err(|error| {
        Failure::with(UNREACHABLE, "NO_SIGNALS", format!("cannot listen for Ctrl-C: {error}"), json!({}))
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
    Failure::with(UNREACHABLE, "STREAM_ENDED", text, json!({}))
}

fn tell(message: &Message, output: &Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.text(&format!("{}\n", message.data));
    }
    match message.event.as_str() {
        "volume" => output.text(&line(&message.read()?)),
        "missed" => {
            output.remark("Some events were missed: `attachctl list` shows what is true now");
            Ok(())
        }
        _ => Ok(()),
    }
}

fn line(event: &Event) -> String {
    let at = event.at.map_or("-".to_owned(), |at| format!("{at:.3}"));
    let line = format!("{at}  {}  {:<9}  {:<9}  {}", event.volume_id, event.step, event.state, event.remarks());
    format!("{}\n", line.trim_end())
}
