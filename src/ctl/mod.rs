//! `attachctl`, the command-line client of attachd. Each subcommand has a file.
//!
//! Each command sends requests with [`client`], reads the answer into a type of [`crate::wire`] and passes it to
//! [`output`]. That prints it for people (with [`table`] and [`units`]) or, with `--json`, as it was received. An
//! error is a [`failure`].

mod client;
mod failure;
mod follow;
mod lines;
mod output;
mod phases;
mod remarks;
mod sse;
mod systemd;
mod table;
mod units;
mod wait;

mod backend;
mod check_config;
mod devices;
mod exports;
mod health;
mod intent_add;
mod intent_withdraw;
mod list;
mod operation;
mod operations;
mod resync;
mod show;
mod watch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::Settings;
use crate::operation::Kind;
use crate::reason::Code;
use client::ApiClient;
use failure::Failure;
use output::Output;

/// The exit statuses at the end of the program's `--help`.
const EXIT_STATUSES: &str = "\
Exit statuses:
  0  done
  1  attachd refused the request, or something failed; standard error says what
  2  the command line cannot be used
  3  the time limit passed before the state was reached
  4  the time limit passed, and the volume is refused: a disk with its serial is here and fails a check
  5  attachd cannot be reached
  6  the operation was cancelled
  130  Ctrl-C while waiting for an operation, which goes on
`health` has its own, as monitoring expects them: 0 healthy, 1 degraded, 2 unhealthy or no answer.

With --json, results are attachd's own JSON on standard output; errors are {\"error\", \"code\", \"details\"} on
standard error.";

/// Announces volumes to attachd, has CloudStack attach and detach them, and shows what became of them.
#[derive(Parser)]
#[command(name = "attachctl", version, after_help = EXIT_STATUSES)]
pub struct Arguments {
    /// attachd's socket.
    #[arg(long, global = true, value_name = "PATH", default_value_os_t = Settings::default().api.socket)]
    socket: PathBuf,
    /// Print attachd's own JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Announce a volume, or withdraw it.
    #[command(subcommand)]
    Intent(IntentCommand),
    /// Have CloudStack create a volume.
    #[command(after_help = operation::help(operation::CREATE))]
    Create(operation::Create),
    /// Have CloudStack attach a volume to this host, and serve it; or attach it to another VM.
    #[command(after_help = operation::help(operation::ATTACH))]
    Attach(operation::Attach),
    /// Have CloudStack attach a volume to another VM as its root disk.
    #[command(after_help = operation::help(operation::ATTACH_ROOT))]
    AttachRoot(operation::AttachRoot),
    /// Take a volume's export away, and have CloudStack detach the volume.
    #[command(after_help = operation::help(operation::DETACH))]
    Detach(operation::Detach),
    /// Detach a volume and have CloudStack delete it for good.
    #[command(after_help = operation::help(operation::DELETE))]
    Delete(operation::Detach),
    /// Clean up after a test failover: stop its VM, bring the volume back to this host, and delete the VM if asked.
    #[command(after_help = operation::help(operation::CLEANUP))]
    Cleanup(operation::Cleanup),
    /// List operations, show one, or cancel one.
    Operations(operations::Options),
    /// List volumes with their states, and why they are not served.
    List(list::Options),
    /// Show one volume: its state, the evidence for its disk, and its story.
    Show(show::Options),
    /// List the disks that are present.
    Devices,
    /// List the exports that NBD clients can connect to, and what the NBD server reports for each.
    #[command(after_help = exports::EXIT_STATUSES)]
    Exports,
    /// Print events as they happen, until Ctrl-C.
    Watch(watch::Options),
    /// Have attachd read all disks and exports again.
    Resync,
    /// Report attachd's health and every problem.
    #[command(after_help = health::EXIT_STATUSES)]
    Health,
    /// Change the NBD server: configuration, units and attachd are changed together, or nothing is. Needs root.
    Backend(backend::Options),
    /// Check a configuration and report every mistake with line and column. attachd need not run.
    CheckConfig(check_config::Options),
}

#[derive(Subcommand)]
enum IntentCommand {
    /// Announce a volume: as soon as its disk appears, it is served. Asking again changes nothing.
    #[command(after_help = intent_add::WAITING)]
    Add(intent_add::Options),
    /// Withdraw an intent: the export is removed at once, then the mapping.
    Withdraw(intent_withdraw::Options),
}

impl Arguments {
    /// Runs the command, prints the result and returns the exit status.
    pub fn run(self) -> ExitCode {
        let output = Output::new(self.json);
        run(&self.socket, self.command, &output).unwrap_or_else(|failure| output.failure(&failure).into())
    }
}

fn run(socket: &Path, command: Command, output: &Output) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Code::NoRuntime, format!("attachctl cannot start: {error}")))?;
    let client = ApiClient::new(socket)?;
    runtime.block_on(dispatch(&client, command, output))
}

async fn dispatch(client: &ApiClient, command: Command, output: &Output) -> Result<ExitCode, Failure> {
    match command {
        Command::Intent(IntentCommand::Add(options)) => intent_add::run(client, &options, output).await?,
        Command::Intent(IntentCommand::Withdraw(options)) => intent_withdraw::run(client, &options, output).await?,
        Command::Create(options) => operation::Begin::create(&options).run(client, output).await?,
        Command::Attach(options) => operation::Begin::attach(&options).run(client, output).await?,
        Command::AttachRoot(options) => operation::Begin::attach_root(&options).run(client, output).await?,
        Command::Detach(options) => operation::Begin::detach(Kind::Detach, &options).run(client, output).await?,
        Command::Delete(options) => operation::Begin::detach(Kind::Delete, &options).run(client, output).await?,
        Command::Cleanup(options) => operation::Begin::cleanup(&options).run(client, output).await?,
        Command::Operations(options) => operations::run(client, &options, output).await?,
        Command::List(options) => list::run(client, &options, output).await?,
        Command::Show(options) => show::run(client, &options, output).await?,
        Command::Devices => devices::run(client, output).await?,
        Command::Exports => return exports::run(client, output).await,
        Command::Watch(options) => watch::run(client, &options, output).await?,
        Command::Resync => resync::run(client, output).await?,
        Command::Health => return health::run(client, output).await,
        Command::Backend(options) => return backend::run(client, &options, output).await,
        Command::CheckConfig(options) => return check_config::run(&options, output),
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn help_names_every_exit_status() {
        let help = Arguments::command().render_long_help().to_string();
        for status in (0..=6).chain([130]) {
            assert!(help.contains(&format!("\n  {status}  ")), "{status} in {help}");
        }
    }
}
