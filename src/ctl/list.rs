//! `attachctl list`.

use clap::builder::PossibleValuesParser;

use super::client::ApiClient;
use super::failure::Failure;
use super::output::Output;
use super::table::TextTable;
use super::units;
use crate::volume::State;
use crate::wire::{ReasonView, VolumeList, VolumeView};

/// The length limit of a hint in the table; `attachctl show` prints the whole hint.
const LONGEST_HINT: usize = 60;

/// Which volumes to list.
#[derive(clap::Args)]
pub(super) struct Options {
    /// Only volumes in this state.
    #[arg(long, value_parser = PossibleValuesParser::new(State::ALL.map(State::as_str)))]
    state: Option<String>,
    /// Only volumes of this VM.
    #[arg(long, value_name = "ID")]
    vm: Option<String>,
}

pub(super) async fn run(client: &ApiClient, options: &Options, output: &Output) -> Result<(), Failure> {
    let filters = [("state", options.state.clone()), ("vm_id", options.vm.clone())];
    let query: Vec<_> = filters.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let answer = client.get("volumes", &query).await?;
    let nothing = if query.is_empty() { "There are no volumes." } else { "No volume matches." };
    output.answer(&answer, |list: &VolumeList| table(&list.volumes).or(nothing))
}

fn table(volumes: &[VolumeView]) -> TextTable<6> {
    let mut table = TextTable::new(["VOLUME", "STATE", "DEVICE", "SIZE", "EXPORT", "REASON"]);
    for volume in volumes {
        table.row([
            volume.volume_id.to_string(),
            volume.state.to_string(),
            volume.device_node.clone().unwrap_or_default(),
            volume.size_bytes.map(units::bytes).unwrap_or_default(),
            volume.export.state.to_string(),
            volume.reason.as_ref().map(brief).unwrap_or_default(),
        ]);
    }
    table
}

fn brief(reason: &ReasonView) -> String {
    format!("{}: {}", reason.code, units::shortened(&reason.hint, LONGEST_HINT))
}
