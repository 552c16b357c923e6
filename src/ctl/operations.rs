//! `attachctl operations`: list them, show one, cancel one.

use clap::Subcommand;
use clap::builder::PossibleValuesParser;
use jiff::Timestamp;

use super::client::ApiClient;
use super::failure::Failure;
use super::follow::{Follow, TO_THE_END, WAITING, ended, outcome};
use super::lines::Lines;
use super::output::Output;
use super::table::TextTable;
use super::units;
use crate::identity::{OperationId, VmId, VolumeId};
use crate::operation::{Kind, OperationState};
use crate::wire::OperationView;

/// The longest error in the list.
const LONGEST_ERROR: usize = 60;

/// How many operations are listed by default.
const LISTED: u32 = 50;

/// What to do with operations. Without a command they are listed.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    filter: Filter,
}

#[derive(Subcommand)]
enum Command {
    /// List operations, the newest first.
    List(Filter),
    /// Show one operation: the request, the present step, and the result.
    #[command(after_help = WAITING)]
    Show(Show),
    /// Cancel an operation. This works only as long as nothing was asked of CloudStack.
    Cancel(Cancel),
}

#[derive(clap::Args)]
struct Filter {
    /// Only operations of this type.
    #[arg(long = "type", value_name = "TYPE", value_parser = PossibleValuesParser::new(Kind::ALL.map(Kind::as_str)))]
    kind: Option<String>,
    /// Only operations in this state.
    #[arg(long, value_parser = PossibleValuesParser::new(OperationState::ALL.map(OperationState::as_str)))]
    status: Option<String>,
    /// Only operations of this volume.
    #[arg(long, value_name = "ID")]
    volume: Option<VolumeId>,
    /// Only operations of this VM.
    #[arg(long, value_name = "ID")]
    vm: Option<VmId>,
    /// The highest number of operations to list.
    #[arg(long, value_name = "NUMBER", default_value_t = LISTED,
        value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
}

#[derive(clap::Args)]
struct Show {
    /// The operation's id.
    operation_id: OperationId,
    /// Wait until the operation has ended, at most this long. Without a number: until its own time limit ends it.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = TO_THE_END)]
    wait: Option<u32>,
}

#[derive(clap::Args)]
struct Cancel {
    /// The operation's id.
    operation_id: OperationId,
}

pub(super) async fn run(client: &ApiClient, options: &Options, output: &Output) -> Result<(), Failure> {
    match &options.command {
        None => list(client, &options.filter, output).await,
        Some(Command::List(filter)) => list(client, filter, output).await,
        Some(Command::Show(show)) => self::show(client, show, output).await,
        Some(Command::Cancel(cancel)) => {
            let answer = client.delete(&format!("operations/{}", cancel.operation_id), &[]).await?;
            output.answer(&answer, |operation: &OperationView| {
                format!("Operation {} ({}) is {}\n", operation.id, operation.kind, operation.status)
            })
        }
    }
}

async fn list(client: &ApiClient, filter: &Filter, output: &Output) -> Result<(), Failure> {
    let filters = [
        ("type", filter.kind.clone()),
        ("status", filter.status.clone()),
        ("volume_id", filter.volume.map(|volume| volume.to_string())),
        ("vm_id", filter.vm.map(|vm| vm.to_string())),
    ];
    let mut query: Vec<_> = filters.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let nothing = if query.is_empty() { "There are no operations." } else { "No operation matches." };
    query.push(("limit", filter.limit.to_string()));
    let answer = client.get("operations", &query).await?;
    // If there are none, the predecessor's callers expect `null`.
    output.answer(&answer, |list: &Option<Vec<OperationView>>| table(list.as_deref().unwrap_or_default()).or(nothing))
}

fn table(operations: &[OperationView]) -> TextTable<6> {
    let mut table = TextTable::new(["OPERATION", "TYPE", "STATUS", "VOLUME", "TOOK", "WHERE, OR WHY"]);
    for operation in operations {
        let last = operation.completed_at.unwrap_or(operation.updated_at);
        table.row([
            operation.id.to_string(),
            operation.kind.to_string(),
            operation.status.to_string(),
            operation.volume_id.clone(),
            units::between(Some(operation.created_at), Some(last)).trim_start_matches('+').to_owned(),
            place_or_error(operation),
        ]);
    }
    table
}

fn place_or_error(operation: &OperationView) -> String {
    match (&operation.step, &operation.error) {
        (Some(step), _) => format!("{}: {}", step.waits_for, step.text),
        (None, Some(error)) => {
            let code = operation.code.as_ref().map_or(String::new(), |code| format!("{code}: "));
            code + &units::shortened(error, LONGEST_ERROR)
        }
        (None, None) => String::new(),
    }
}

async fn show(client: &ApiClient, options: &Show, output: &Output) -> Result<(), Failure> {
    let path = format!("operations/{}", options.operation_id);
    let answer = client.get(&path, &[]).await?;
    let operation: OperationView = answer.read()?;
    let Some(seconds) = options.wait else {
        return output.answer(&answer, in_words);
    };
    if operation.status.is_ended() {
        return ended(output, &operation, &answer.text);
    }
    let follow = Follow::listen(client, output, operation.volume_id.parse().ok()).await?;
    // The operation may have ended before the subscription began.
    let answer = client.get(&path, &[]).await?;
    follow.until_ended(&answer, seconds).await
}

fn in_words(operation: &OperationView) -> String {
    let mut lines = Lines::default();
    lines.line("operation", &operation.id.to_string());
    lines.line("type", operation.kind.as_str());
    lines.line("status", &format!("{}, since {}", operation.status, moment(operation.updated_at)));
    if let Some(step) = &operation.step {
        lines.line("waits for", &format!("{}: {}", step.waits_for, step.text));
        let cancel = if step.cancellable { "can be cancelled" } else { "cannot be cancelled any more" };
        lines.line("step", &format!("{}, since {}, {cancel}", step.name, moment(step.since)));
        if let Some(job) = &step.job_id {
            lines.line("job", &format!("{job} (CloudStack's)"));
        }
        lines.line("time limit", &moment(operation.deadline_at));
    }
    lines.line("volume", if operation.volume_id.is_empty() { "not known yet" } else { &operation.volume_id });
    lines.line("vm", &operation.vm_id.map_or("-".to_owned(), |vm| vm.to_string()));
    if let Some(error) = &operation.error {
        let code = operation.code.as_ref().map_or(String::new(), |code| format!("{code}: "));
        lines.line("error", &format!("{code}{error}"));
    }
    if let Some(hint) = &operation.hint {
        lines.line("hint", hint);
    }
    if let Some(response) = &operation.response {
        lines.line("result", &outcome(operation));
        if let Some(flush) = &response.flush {
            let why = flush.why.as_ref().map_or(String::new(), |why| format!(": {why}"));
            lines.line("flush", &format!("{}{why}", flush.state));
        }
    }
    for (field, value) in &operation.request {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        lines.line("asked", &format!("{field} {value}"));
    }
    let user = operation.uid.map_or("a user who is not known".to_owned(), |uid| format!("uid {uid}"));
    let key = operation.key.as_ref().map_or(String::new(), |key| format!(", key {key}"));
    lines.line("by", &format!("{user}{key}, {}", moment(operation.created_at)));
    lines.to_string()
}

fn moment(at: Timestamp) -> String {
    format!("{at:.6}")
}
