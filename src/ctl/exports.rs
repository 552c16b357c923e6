//! `attachctl exports`.

use std::fmt::Write;

use serde::Deserialize;

use super::answers::Export;
use super::client::Client;
use super::failure::Failure;
use super::output::Output;
use super::table::Table;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Exports {
    exports: Vec<Export>,
    foreign: Vec<String>,
}

pub(super) async fn run(client: &Client, output: &Output) -> Result<(), Failure> {
    let answer = client.get("exports", &[]).await?;
    output.answer(&answer, told)
}

fn told(list: &Exports) -> String {
    let mut table = Table::new(["STATE", "DEVICE", "URI"]);
    for export in &list.exports {
        let device = export.device_path.clone().unwrap_or_default();
        table.row([export.state.clone(), device, export.uri.clone()]);
    }
    let mut text = table.or("There are no exports.");
    if !list.foreign.is_empty() {
        let _ = writeln!(text, "Not made by attachd, and offered unproven: {}", list.foreign.join(", "));
    }
    text
}
