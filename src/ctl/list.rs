//! `attachctl list`.

use clap::builder::PossibleValuesParser;
use serde::Deserialize;

use super::answers::{Reason, Volume};
use super::client::Client;
use super::failure::Failure;
use super::output::Output;
use super::table::Table;
use super::units;
use crate::volume::State;

/// The longest hint in the table; `attachctl show` has it whole.
const LONGEST_HINT: usize = 60;

/// Which volumes.
#[derive(clap::Args)]
pub(super) struct Options {
    /// Only those in this state.
    #[arg(long, value_parser = PossibleValuesParser::new(State::ALL.map(State::as_str)))]
    state: Option<String>,
    /// Only those of this VM.
    #[arg(long, value_name = "ID")]
    vm: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Volumes {
    volumes: Vec<Volume>,
}

pub(super) async fn run(client: &Client, options: &Options, output: &Output) -> Result<(), Failure> {
    let filters = [("state", options.state.clone()), ("vm_id", options.vm.clone())];
    let query: Vec<_> = filters.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let answer = client.get("volumes", &query).await?;
    let nothing = if query.is_empty() { "There are no volumes." } else { "No volume is like that." };
    output.answer(&answer, |list: &Volumes| table(&list.volumes).or(nothing))
}

fn table(volumes: &[Volume]) -> Table<6> {
    let mut table = Table::new(["VOLUME", "STATE", "DEVICE", "SIZE", "EXPORT", "REASON"]);
    for volume in volumes {
        table.row([
            volume.id.clone(),
            volume.state.clone(),
            volume.device_node.clone().unwrap_or_default(),
            volume.size_bytes.map(units::bytes).unwrap_or_default(),
            volume.export.state.clone(),
            volume.reason.as_ref().map(brief).unwrap_or_default(),
        ]);
    }
    table
}

fn brief(reason: &Reason) -> String {
    format!("{}: {}", reason.code, units::shortened(&reason.hint, LONGEST_HINT))
}
