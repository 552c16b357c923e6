//! Waits for a volume to be served, and prints every step as it happens.

use std::time::Duration;

use jiff::Timestamp;

use super::client::{ApiAnswer, ApiClient, EventStream};
use super::failure::Failure;
use super::output::Output;
use super::remarks::remarks;
use super::units;
use crate::identity::VolumeId;
use crate::reason::StoryStep;
use crate::volume::State;
use crate::wire::{EventView, MISSED, VOLUME, VolumeView, WaitTimeoutDetails};

/// The pause between attempts to connect to attachd again.
const PAUSE: Duration = Duration::from_millis(200);

/// A wait for one volume.
pub(super) struct Wait<'a> {
    client: &'a ApiClient,
    output: &'a Output,
    volume: VolumeId,
    events: EventStream,
    /// The time of the first step.
    first: Option<Timestamp>,
}

impl<'a> Wait<'a> {
    /// Subscribes to events. Call this before the request, so that no step is missed.
    pub(super) async fn listen(client: &'a ApiClient, output: &'a Output, volume: VolumeId) -> Result<Self, Failure> {
        let events = client.events(Some(volume)).await?;
        Ok(Self { client, output, volume, events, first: None })
    }

    /// Waits until the volume is ready. `known`: the intent existed before, so the volume may be ready already, and
    /// then no event comes.
    pub(super) async fn until_ready(mut self, known: bool, seconds: u32) -> Result<ApiAnswer, Failure> {
        let limit = Duration::from_secs(seconds.into());
        if let Ok(ready) = tokio::time::timeout(limit, self.ready(known)).await {
            return ready;
        }
        let stands: VolumeView = self.client.volume(self.volume).await?.read()?;
        Err(Failure::waited(self.volume, &WaitTimeoutDetails::from(stands), State::Ready, seconds))
    }

    /// Waits without a time limit. Events are hints: after each event the volume is read, and its state counts.
    async fn ready(&mut self, mut look: bool) -> Result<ApiAnswer, Failure> {
        loop {
            if look {
                let answer = self.client.volume(self.volume).await?;
                if answer.read::<VolumeView>()?.state == State::Ready {
                    return Ok(answer);
                }
            }
            look = match self.events.next().await {
                Some(message) if message.event == VOLUME => {
                    let event: EventView = message.read()?;
                    self.show(&event)?;
                    event.state == State::Ready || event.event == StoryStep::Withdrawn.into()
                }
                Some(message) => message.event == MISSED,
                None => {
                    self.output.remark("attachd ended the stream of events; looking for it again");
                    self.events = self.found_again().await;
                    true
                }
            };
        }
    }

    /// Waits until attachd accepts connections again. attachd may be restarting or may have ended for good; the
    /// caller's time limit ends this wait.
    async fn found_again(&self) -> EventStream {
        loop {
            tokio::time::sleep(PAUSE).await;
            if let Ok(events) = self.client.events(Some(self.volume)).await {
                return events;
            }
        }
    }

    fn show(&mut self, event: &EventView) -> Result<(), Failure> {
        if self.output.is_json() {
            return Ok(());
        }
        self.first = self.first.or(Some(event.at));
        let time = units::milliseconds(self.first, Some(event.at));
        let line = format!("{time:>12}  {:<9}  {:<9}  {}", event.event, event.state, remarks(event));
        self.output.text(&format!("{}\n", line.trim_end()))
    }
}
