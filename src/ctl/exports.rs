//! `attachctl exports`: which exports attachd wants served, and what the NBD server says about them.

use std::fmt::Write;
use std::process::ExitCode;

use super::client::ApiClient;
use super::failure::{DONE, FAILED, Failure};
use super::output::Output;
use super::table::TextTable;
use crate::wire::{CheckedExport, ExportList, ServedCount};

/// The exit statuses of this command, for `--help`.
pub(super) const EXIT_STATUSES: &str = "\
Exit statuses:
  0  every export whose disk is proven can be opened
  1  one cannot, or it could not be checked";

pub(super) async fn run(client: &ApiClient, output: &Output) -> Result<ExitCode, Failure> {
    let answer = client.get("exports", &[("check", "true".to_owned())]).await?;
    let list: ExportList = output.answer_and_read(&answer, |list| Ok(in_words(list, checked(list)?)))?;
    let ServedCount { due, openable } = ServedCount::of(checked(&list)?);
    Ok(if due == openable { DONE } else { FAILED }.into())
}

/// Returns the checked exports; a failure if the answer has none.
fn checked(list: &ExportList) -> Result<&[CheckedExport], Failure> {
    list.checked.as_deref().ok_or_else(|| Failure::not_understood("it has no `checked`"))
}

fn in_words(list: &ExportList, checked: &[CheckedExport]) -> String {
    let mut table = TextTable::new(["EXPORT", "WANTED", "PUBLISHED", "LISTED", "OPENABLE", "STALE"]);
    for export in checked {
        let facts = [Some(export.wanted), Some(export.published), export.listed, export.openable, Some(export.stale)];
        let [wanted, published, listed, openable, stale] = facts.map(word);
        table.row([export.name.clone(), wanted, published, listed, openable, stale]);
    }
    let mut text = table.or("There are no exports.");
    if !checked.is_empty() {
        let ServedCount { due, openable } = ServedCount::of(checked);
        let _ = writeln!(text, "{openable} of {due} volumes with a proven disk can be opened.");
    }
    for export in checked {
        // An export that should not be served needs no reason why it is not.
        if let Some(why) = export.why.as_ref().filter(|_| export.published || export.due) {
            let _ = writeln!(text, "{}: {why}", export.name);
        }
        if let Some(clear) = &export.clear {
            let _ = writeln!(text, "{} is in the server's memory only. To clear it: {clear}", export.name);
        }
    }
    if !list.foreign.is_empty() {
        let more = list.foreign_count.saturating_sub(list.foreign.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let _ = writeln!(text, "Not made by attachd, and offered unproven: {}{more}", list.foreign.join(", "));
    }
    text
}

fn word(fact: Option<bool>) -> String {
    match fact {
        Some(true) => "yes",
        Some(false) => "no",
        None => "unknown",
    }
    .to_owned()
}
