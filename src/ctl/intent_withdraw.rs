//! `attachctl intent withdraw`.

use super::client::ApiClient;
use super::failure::Failure;
use super::output::Output;
use crate::identity::VolumeId;
use crate::wire::WithdrawnView;

/// What to withdraw.
#[derive(clap::Args)]
pub(super) struct Options {
    /// The CloudStack volume's UUID.
    volume_id: VolumeId,
    /// Withdraw even while NBD clients are connected; they stay connected, new ones are refused.
    #[arg(long)]
    force: bool,
}

/// Printed if it is unknown which export the clients use.
const CANDIDATES: &str = "Some of these may use other exports.\n";

pub(super) async fn run(client: &ApiClient, options: &Options, output: &Output) -> Result<(), Failure> {
    let force = [("force", "true".to_owned())];
    let query = if options.force { &force[..] } else { &[] };
    let answer = client.delete(&format!("intents/{}", options.volume_id), query).await?;
    output.answer(&answer, |withdrawn: &WithdrawnView| {
        let clients = &withdrawn.clients_still_connected;
        let candidates = if withdrawn.clients_exact || clients.is_empty() { "" } else { CANDIDATES };
        let lines = clients.iter().map(|client| format!("  {client}\n"));
        format!("{}\n{}{candidates}", withdrawn.message, lines.collect::<String>())
    })
}
