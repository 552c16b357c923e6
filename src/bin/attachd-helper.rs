//! attachd-helper, the one program that runs as root. Started by its socket; `attachd::helper` says what it does.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Does the four things attachd needs root for. Started by attachd-helper.socket.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Listen here, without systemd, and stay.
    #[arg(long)]
    socket: Option<PathBuf>,
}

fn main() -> ExitCode {
    match attachd::helper::run(Arguments::parse().socket.as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            attachd::helper::journal(&format!("cannot serve: {error}"));
            ExitCode::FAILURE
        }
    }
}
