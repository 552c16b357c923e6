//! `docs/callers.md`, written from the rows.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::row::{After, Before, Client, Given, Poll, Request, Row, Shell, Step, Then};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/callers.md");

/// What stands above the tables, and is written by hand.
const HEAD: &str = include_str!("head.md");

/// Checks that the page is what the rows say; with `UPDATE=1` in the environment, writes it.
pub(crate) fn is_up_to_date(rows: &[Row]) {
    let page = page(rows);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(PAGE, page).unwrap();
        return;
    }
    let there = fs::read_to_string(Path::new(PAGE)).unwrap_or_default();
    assert!(there == page, "docs/callers.md is older than tests/callers: run `make callers`");
}

fn page(rows: &[Row]) -> String {
    let mut page = HEAD.to_owned();
    for row in rows {
        write!(page, "\n{}", section(row)).unwrap();
    }
    page
}

fn section(row: &Row) -> String {
    let mut text = format!("## {}\n\n`{}`, {}.\n", row.caller, row.program, client(row.client));
    let given: Vec<_> = row.given.iter().map(before).collect();
    let faults: Vec<_> = row.fault.iter().map(|fault| format!("CloudStack's next `{}` fails", fault.command)).collect();
    let before = [given, faults].concat();
    if !before.is_empty() {
        writeln!(text, "Before: {}.", before.join("; ")).unwrap();
    }
    text += "\n| | call | it requires | it reads | else |\n|---|---|---|---|---|\n";
    for (number, step) in row.step.iter().enumerate() {
        writeln!(text, "| {} | {} |", number + 1, cells(step).join(" | ")).unwrap();
    }
    writeln!(text, "\n**Promised:** {}", row.promise).unwrap();
    let after: Vec<_> = row.after.iter().map(after).collect();
    if !after.is_empty() {
        writeln!(text, "Checked: {}.", after.join("; ")).unwrap();
    }
    let calls: Vec<_> = row.cloud.iter().map(|line| format!("`{line}`")).collect();
    let order = if row.at_once { "of each volume in this order" } else { "in this order" };
    match calls.len() {
        0 => text += "CloudStack was asked to change nothing.\n",
        1 => writeln!(text, "CloudStack was asked for {}, once.", calls[0]).unwrap(),
        _ => writeln!(text, "CloudStack was asked, {order}: {}.", calls.join(", ")).unwrap(),
    }
    if !row.note.is_empty() {
        writeln!(text, "\n{}", row.note.trim()).unwrap();
    }
    text
}

fn cells(step: &Step) -> [String; 4] {
    match step {
        Step::Call(call) => call_cells(call),
        Step::Poll(poll) => poll_cells(poll),
        Step::Sleep { seconds } => {
            [format!("waits {seconds} s without asking"), String::new(), String::new(), String::new()]
        }
        Step::Shell(shell) => shell_cells(shell),
    }
}

fn call_cells(call: &Request) -> [String; 4] {
    let body = call.body.as_ref().map(|body| format!(" `{}`", compact(body))).unwrap_or_default();
    let limit = call.limit_seconds.map(|seconds| format!(", within {seconds} s")).unwrap_or_default();
    let comes = call.comes.map(|status| format!("; here {status} comes")).unwrap_or_default();
    let required = format!("{}{limit}{comes}", call.requires);
    [format!("`{}`{body}", call.call), required, answers(&call.reads, &call.answer), call.if_not.clone()]
}

fn poll_cells(poll: &Poll) -> [String; 4] {
    let limit = poll.limit_seconds.map_or_else(|| "without limit".to_owned(), |seconds| format!("for {seconds} s"));
    let what = format!("`GET /api/v1/operations/{}` every {} s, {limit}", poll.operation, poll.every_seconds);
    let ends = match poll.ends.as_str() {
        "completed" => "`completed`".to_owned(),
        status => format!("`completed`; here `{status}` comes"),
    };
    [what, ends, answers(&poll.reads, &poll.answer), poll.if_not.clone()]
}

fn shell_cells(shell: &Shell) -> [String; 4] {
    let lines: Vec<_> = shell.lines.trim().lines().map(|line| format!("`{}`", cell(line.trim()))).collect();
    let every = shell.every_seconds.map(|every| format!(", every {every} s, up to {} times", shell.times));
    let prints = match shell.prints.as_str() {
        "*" => "anything".to_owned(),
        text => format!("`{}`", cell(&text.replace('\n', "` `"))),
    };
    let reads = if shell.reads.is_empty() { String::new() } else { format!("as `{{{}}}`", shell.reads) };
    [lines.join("<br>") + &every.unwrap_or_default(), format!("prints {prints}"), reads, String::new()]
}

/// What the caller reads, and what it has to be.
fn answers(reads: &BTreeMap<String, String>, answer: &BTreeMap<String, Value>) -> String {
    let name = |pointer: &str| pointer.trim_start_matches('/').replace('/', ".");
    let reads = reads.iter().map(|(as_name, pointer)| match name(pointer) {
        found if found == *as_name => format!("`{found}`"),
        found => format!("`{found}` as `{{{as_name}}}`"),
    });
    let wanted = answer.iter().map(|(pointer, wanted)| match wanted {
        Value::String(any) if any == "*" => format!("`{}`", name(pointer)),
        Value::String(text) => match text.strip_suffix('*') {
            Some(beginning) => format!("`{}`, which begins with `{beginning}`", name(pointer)),
            None => format!("`{}`: `{text}`", name(pointer)),
        },
        Value::Null => format!("no `{}`", name(pointer)),
        other => format!("`{}`: `{other}`", name(pointer)),
    });
    reads.chain(wanted).collect::<Vec<_>>().join("; ")
}

fn compact(value: &Value) -> String {
    cell(&value.to_string())
}

/// Text in a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn client(client: Client) -> &'static str {
    match client {
        Client::Common => "by `VolumeClient`",
        Client::Go => "by Go's default HTTP client",
        Client::Shell => "in a shell",
    }
}

fn before(given: &Given) -> String {
    let name = &given.volume;
    match given.is {
        Before::Detached => format!("`{name}` is attached to nothing"),
        Before::Served => format!("`{name}` is attached here and served"),
        Before::AtTheOtherVm => format!("`{name}` is attached to the other VM"),
        Before::Deleted => format!("`{name}` was deleted"),
    }
}

fn after(after: &After) -> String {
    let name = &after.volume;
    match after.is {
        Then::Served => format!("an NBD client reads from `{name}`'s export the bytes of its disk"),
        Then::Detached => format!("`{name}` is attached to nothing and has no export"),
        Then::Deleted => format!("`{name}` is not in CloudStack any more and has no export"),
        Then::AtTheOtherVm => format!("`{name}` is attached to the other VM and has no export"),
        Then::RootOfTheOtherVm => format!("`{name}` is the other VM's root disk and has no export"),
    }
}
