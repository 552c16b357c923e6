//! `attachctl intent add`.

use super::client::ApiClient;
use super::failure::Failure;
use super::output::Output;
use super::wait::Wait;
use crate::identity::VolumeId;
use crate::wire::{IntentView, NewIntent, VolumeView};

/// The HTTP status of an answer to a new intent.
const CREATED: u16 = 201;

/// The exit statuses with `--wait`, for `--help`.
pub(super) const WAITING: &str = "\
With --wait, every step is shown with the milliseconds since the first, and the exit status says how it ended:
  0  ready: served, and shown to be so by an NBD handshake
  3  the time limit passed first; standard error says the volume's state and why
  4  the time limit passed, and the volume is refused: a disk with its serial is here and fails a check
A refusal does not end the waiting: it can heal, by itself (NOT_MARKED, as soon as udev has marked the disk) or by your
hand. In both cases the intent stays. With --json only the volume as it is at the end is printed.";

/// What to announce.
#[derive(clap::Args)]
pub(super) struct Options {
    /// The CloudStack volume's UUID.
    volume_id: VolumeId,
    /// The VM it belongs to; by default this host's own.
    #[arg(long, value_name = "ID")]
    vm: Option<String>,
    /// The smallest size that the disk may have.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    size: Option<u64>,
    /// How long attachd waits for the disk. A later disk is still served, and reported as late.
    #[arg(long, value_name = "SECONDS")]
    deadline: Option<u32>,
    /// Wait until the volume is ready, at most this long.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "60")]
    wait: Option<u32>,
}

impl Options {
    fn body(&self) -> NewIntent {
        NewIntent {
            volume_id: self.volume_id.to_string(),
            vm_id: self.vm.clone(),
            size_bytes: self.size,
            deadline_seconds: self.deadline,
        }
    }
}

pub(super) async fn run(client: &ApiClient, options: &Options, output: &Output) -> Result<(), Failure> {
    let Some(seconds) = options.wait else {
        let answer = client.post("intents", Some(&options.body())).await?;
        let new = answer.status == CREATED;
        return output.answer(&answer, |intent: &IntentView| accepted(intent, new));
    };
    let wait = Wait::listen(client, output, options.volume_id).await?;
    let answer = client.post("intents", Some(&options.body())).await?;
    let known = answer.status != CREATED;
    if known && !output.is_json() {
        output.text(&accepted(&answer.read()?, false))?;
    }
    let answer = wait.until_ready(known, seconds).await?;
    output.answer(&answer, served)
}

fn accepted(intent: &IntentView, new: bool) -> String {
    let IntentView { volume_id, serial, state, .. } = intent;
    let when = if new { "accepted" } else { "accepted before" };
    format!("Intent for volume {volume_id} {when}: {state}, serial {serial}\n")
}

fn served(volume: &VolumeView) -> String {
    format!("Volume {} is ready: {}\n", volume.volume_id, volume.export.uri)
}
