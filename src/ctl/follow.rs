//! Follows an operation until it has ended, and shows where it is.

use std::time::Duration;

use futures_util::StreamExt;
use serde_json::json;
use signal_hook::consts::SIGINT;
use signal_hook_tokio::Signals;
use tokio::time::{Instant, sleep_until};

use super::client::{ApiAnswer, ApiClient, EventStream};
use super::failure::{CANCELLED, FAILED, Failure, INTERRUPTED, TIMED_OUT, UNREACHABLE};
use super::output::Output;
use super::phases::{Phases, Step};
use super::sse::Message;
use crate::clock;
use crate::identity::{OperationId, VolumeId};
use crate::operation::OperationState;
use crate::reason::Code;
use crate::wire::{EventView, MISSED, OPERATION, OperationStanding, OperationView, VOLUME};

/// The pause between attempts to connect to attachd again.
const PAUSE: Duration = Duration::from_millis(200);

/// How often the line on a terminal is written again.
const TICK: Duration = Duration::from_millis(500);

/// The seconds to wait if no number is given: longer than any operation may take.
pub(super) const TO_THE_END: &str = "90000";

/// The exit statuses with `--wait`, for `--help`.
pub(super) const WAITING: &str = "\
With --wait, the progress is shown: what the operation waits for (cloud, kernel, udev, attachd) and since when. The exit
status says how it ended:
  0    completed: for this host served, for another VM confirmed by CloudStack
  1    refused or failed; standard error says why and what to do
  3    the time to wait passed first; the operation goes on
  6    it was cancelled
  130  Ctrl-C; the operation goes on
Without --wait, 0 means that it is on record and is carried out whatever happens to attachd.
With --json only the operation as it is at the end is printed.";

/// The events of an operation that is being followed.
pub(super) struct Follow<'a> {
    client: &'a ApiClient,
    output: &'a Output,
    volume: Option<VolumeId>,
    events: EventStream,
    interrupted: Signals,
}

/// Why the wait ended.
enum Outcome {
    Ended(Box<OperationView>, String),
    Interrupted,
    TooLong,
}

impl<'a> Follow<'a> {
    /// Subscribes to the events of the volume (of all volumes, if it is not known yet). Call this before the request,
    /// so that no step is missed.
    pub(super) async fn listen(
        client: &'a ApiClient,
        output: &'a Output,
        volume: Option<VolumeId>,
    ) -> Result<Self, Failure> {
        let events = client.events(volume).await?;
        let interrupted = Signals::new([SIGINT]).map_err(|error| {
            Failure::with(UNREACHABLE, Code::NoSignals, format!("cannot listen for Ctrl-C: {error}"), json!({}))
        })?;
        Ok(Self { client, output, volume, events, interrupted })
    }

    /// Waits until the operation has ended, for `seconds` at most. `answer` is the operation as it was last seen.
    pub(super) async fn until_ended(mut self, answer: &ApiAnswer, seconds: u32) -> Result<(), Failure> {
        let first: OperationView = answer.read()?;
        let mut phases = Phases::new(self.output.is_live(), first.created_at);
        let deadline = Instant::now() + Duration::from_secs(seconds.into());
        let outcome = self.outcome(&first, answer, &mut phases, deadline).await;
        self.write(&phases.end(clock::wall()))?;
        match outcome? {
            Outcome::Ended(operation, text) => ended(self.output, &operation, &text),
            Outcome::Interrupted => Err(goes_on(INTERRUPTED, Code::Interrupted, "the waiting was interrupted", &first)),
            Outcome::TooLong => {
                let now: OperationView = self.look(first.id).await?.read()?;
                let text = format!("the operation is {} after {seconds} s", now.status);
                Err(goes_on(TIMED_OUT, Code::WaitTimeout, &text, &now))
            }
        }
    }

    async fn outcome(
        &mut self,
        first: &OperationView,
        answer: &ApiAnswer,
        phases: &mut Phases,
        deadline: Instant,
    ) -> Result<Outcome, Failure> {
        if first.status.is_ended() {
            return Ok(Outcome::Ended(Box::new(first.clone()), answer.text.clone()));
        }
        self.show(first, phases)?;
        let mut tick = tokio::time::interval(TICK);
        loop {
            let message = tokio::select! {
                message = self.events.next() => message,
                _ = self.interrupted.next() => return Ok(Outcome::Interrupted),
                () = sleep_until(deadline) => return Ok(Outcome::TooLong),
                _ = tick.tick(), if self.output.is_live() => {
                    self.write(&phases.tick(clock::wall()))?;
                    continue;
                }
            };
            let changed = if let Some(message) = message {
                self.told(&message, first.id, phases)?
            } else {
                self.output.remark("attachd ended the stream of events; looking for it again");
                tokio::select! {
                    events = found_again(self.client, self.volume) => self.events = events,
                    _ = self.interrupted.next() => return Ok(Outcome::Interrupted),
                    () = sleep_until(deadline) => return Ok(Outcome::TooLong),
                }
                true
            };
            // Events are hints; the answer to a request decides.
            if changed {
                let answer = self.look(first.id).await?;
                let now: OperationView = answer.read()?;
                if now.status.is_ended() {
                    return Ok(Outcome::Ended(Box::new(now), answer.text));
                }
                self.show(&now, phases)?;
            }
        }
    }

    /// Shows an event. Returns whether the operation must be read again.
    fn told(&mut self, message: &Message, id: OperationId, phases: &mut Phases) -> Result<bool, Failure> {
        match message.event.as_str() {
            OPERATION => {
                let operation: OperationView = message.read()?;
                if operation.id != id {
                    return Ok(false);
                }
                self.volume = self.volume.or_else(|| operation.volume_id.parse().ok());
                self.show(&operation, phases)?;
                Ok(operation.status.is_ended())
            }
            VOLUME => {
                let event: EventView = message.read()?;
                if Some(event.volume_id) == self.volume
                    && let Some(step) = Step::of_volume(&event)
                {
                    self.write(&phases.step(step))?;
                }
                Ok(false)
            }
            event => Ok(event == MISSED),
        }
    }

    fn show(&self, operation: &OperationView, phases: &mut Phases) -> Result<(), Failure> {
        match &operation.step {
            Some(step) => self.write(&phases.step(Step::of_operation(step))),
            None => Ok(()),
        }
    }

    fn write(&self, text: &str) -> Result<(), Failure> {
        if self.output.is_json() || text.is_empty() { Ok(()) } else { self.output.text(text) }
    }

    async fn look(&self, id: OperationId) -> Result<ApiAnswer, Failure> {
        self.client.get(&format!("operations/{id}"), &[]).await
    }
}

/// Connects to attachd again. It may be restarting, or it may be gone; the time limit of the wait decides.
async fn found_again(client: &ApiClient, volume: Option<VolumeId>) -> EventStream {
    loop {
        tokio::time::sleep(PAUSE).await;
        if let Ok(events) = client.events(volume).await {
            return events;
        }
    }
}

/// Prints an operation that has ended, or returns why it was not done.
pub(super) fn ended(output: &Output, operation: &OperationView, text: &str) -> Result<(), Failure> {
    let OperationView { id, kind, .. } = operation;
    match operation.status {
        OperationState::Completed if output.is_json() => output.json(text),
        OperationState::Completed => output.text(&format!("Operation {id} is completed: {}\n", outcome(operation))),
        OperationState::Cancelled => {
            let text = format!("the operation {id} ({kind}) was cancelled: nothing was asked of CloudStack");
            Err(Failure::with(CANCELLED, Code::OperationCancelled, text, json!(operation)))
        }
        _ => {
            let why = operation.error.as_deref().unwrap_or("attachd does not say why");
            let hint = operation.hint.as_deref().map_or(String::new(), |hint| format!(". {hint}"));
            let code = operation.code.clone().unwrap_or_else(|| Code::Failed.into());
            Err(Failure::with(
                FAILED,
                code,
                format!("the operation {id} ({kind}) failed: {why}{hint}"),
                json!(operation),
            ))
        }
    }
}

/// Returns the result in a sentence.
pub(super) fn outcome(operation: &OperationView) -> String {
    let Some(response) = &operation.response else { return operation.kind.to_string() };
    let volume = response.volume_id.map_or(String::new(), |volume| format!(", volume {volume}"));
    let path = response.device_path.as_ref().map_or(String::new(), |path| format!(", {path}"));
    let adopted = if response.adopted { " (it was so already)" } else { "" };
    format!("{}{adopted}{volume}{path}", response.message)
}

/// The error for a wait that ended before the operation.
fn goes_on(status: u8, code: Code, what: &str, operation: &OperationView) -> Failure {
    let id = operation.id;
    let place =
        operation.step.as_ref().map_or(String::new(), |step| format!(", at the step {}: {}", step.name, step.text));
    let text = format!(
        "{what}{place}. It goes on: `attachctl operations show {id} --wait` follows it, `attachctl operations cancel {id}` \
         calls it off while that is harmless"
    );
    let standing = OperationStanding { status: operation.status, step: operation.step.clone() };
    Failure::with(status, code, text, json!({ "id": id, "status": standing.status, "step": standing.step }))
}
