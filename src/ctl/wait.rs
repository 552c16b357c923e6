//! Waiting for a volume to be served, with every step shown as it happens.

use std::time::Duration;

use jiff::Timestamp;

use super::answers::{Event, Volume};
use super::client::{Answer, Client, Events};
use super::failure::{Failure, Standing};
use super::output::Output;
use super::units;
use crate::identity::VolumeId;

/// Pause between attempts to find attachd again.
const PAUSE: Duration = Duration::from_millis(200);

/// One volume that is waited for.
pub(super) struct Wait<'a> {
    client: &'a Client,
    output: &'a Output,
    volume: VolumeId,
    events: Events,
    /// When the first step happened.
    first: Option<Timestamp>,
}

impl<'a> Wait<'a> {
    /// Begins to listen. To be done before anything is asked for, so that no step is missed.
    pub(super) async fn listen(client: &'a Client, output: &'a Output, volume: VolumeId) -> Result<Self, Failure> {
        let events = client.events(Some(volume)).await?;
        Ok(Self { client, output, volume, events, first: None })
    }

    /// Waits. `known`: the volume was announced before, so it may be ready already, and then no event comes.
    pub(super) async fn until_ready(mut self, known: bool, seconds: u32) -> Result<Answer, Failure> {
        let limit = Duration::from_secs(seconds.into());
        if let Ok(ready) = tokio::time::timeout(limit, self.ready(known)).await {
            return ready;
        }
        let stands: Standing = self.client.volume(self.volume).await?.read()?;
        Err(Failure::waited(&self.volume.to_string(), &stands, "ready", seconds))
    }

    /// Events are hints: what counts is how the volume looks then.
    async fn ready(&mut self, mut look: bool) -> Result<Answer, Failure> {
        loop {
            if look {
                let answer = self.client.volume(self.volume).await?;
                if answer.read::<Volume>()?.state == "ready" {
                    return Ok(answer);
                }
            }
            look = match self.events.next().await {
                Some(message) if message.event == "volume" => {
                    let event = message.read()?;
                    self.show(&event)?;
                    event.state == "ready" || event.step == "withdrawn"
                }
                Some(message) => message.event == "missed",
                None => {
                    self.output.remark("attachd ended the stream of events; looking for it again");
                    self.events = self.found_again().await;
                    true
                }
            };
        }
    }

    /// attachd is being restarted, or has ended; only the limit of the waiting tells which.
    async fn found_again(&self) -> Events {
        loop {
            tokio::time::sleep(PAUSE).await;
            if let Ok(events) = self.client.events(Some(self.volume)).await {
                return events;
            }
        }
    }

    fn show(&mut self, event: &Event) -> Result<(), Failure> {
        if self.output.is_json() {
            return Ok(());
        }
        self.first = self.first.or(event.at);
        let time = units::milliseconds(self.first, event.at);
        let line = format!("{time:>12}  {:<9}  {:<9}  {}", event.step, event.state, event.remarks());
        self.output.text(&format!("{}\n", line.trim_end()))
    }
}
