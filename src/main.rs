//! attachd, the daemon. `attachd --help` says how to start it.

use std::path::PathBuf;
use std::process::ExitCode;

use attachd::device::reader_process;
use attachd::{config, daemon, telemetry};
use clap::{Parser, Subcommand};

/// Turns "this cloud volume will be attached here" into a served NBD export.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file.
    #[arg(long, global = true, default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon (the default).
    Run,
    /// What the daemon starts by itself.
    #[command(name = reader_process::ARGUMENT, hide = true)]
    ReadAttributes,
    /// Check the configuration and say every mistake with its place.
    CheckConfig,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if matches!(arguments.command, Some(Command::CheckConfig)) {
        return config::report(&arguments.config);
    }
    if matches!(arguments.command, Some(Command::ReadAttributes)) {
        return reader_process::serve();
    }
    let flush = telemetry::init();
    // A panic has been written by then; its status is the one that a panic has.
    let outcome = std::panic::catch_unwind(|| daemon::run(&arguments.config));
    let status = match outcome {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => telemetry::failed(&error),
        Err(_) => PANICKED,
    };
    drop(flush);
    end(status)
}

/// The exit status after a panic, as the standard library has it.
const PANICKED: u8 = 101;

/// Ends the process without exit handlers, whatever the reason. A thread that still calls CloudStack may be in OpenSSL,
/// whose exit handler frees what that thread uses: the process would end with a segmentation fault.
fn end(status: u8) -> ! {
    // SAFETY: it ends the process and nothing else. What has to be written is written: the store is closed, if it was
    // opened, and the journal flushed. Standard error has no buffer.
    unsafe { libc::_exit(status.into()) }
}
