//! What operators see: one line per event on standard error, with its fields.

pub mod manager;

use std::io::IsTerminal;
use std::process::ExitCode;

use tracing::level_filters::LevelFilter;

use crate::config::Invalid;

/// Exit status for a configuration that cannot be used (`EX_CONFIG` of sysexits.h): restarting would not help.
const EXIT_CONFIG: u8 = 78;

/// Sends the program's events to standard error. `ATTACHD_LOG` takes `error`, `warn`, `info`, `debug` or `trace`.
pub fn init() {
    let level = std::env::var("ATTACHD_LOG").ok().and_then(|level| level.parse().ok()).unwrap_or(LevelFilter::INFO);
    let terminal = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(terminal)
        .with_target(false);
    // journald puts its own time in front of each line.
    if std::env::var_os("JOURNAL_STREAM").is_some() { lines.without_time().init() } else { lines.init() }
}

/// Says why the program ends, and with which exit status.
pub fn failed(error: &anyhow::Error) -> ExitCode {
    tracing::error!("attachd cannot go on: {error:#}");
    if error.is::<Invalid>() { ExitCode::from(EXIT_CONFIG) } else { ExitCode::FAILURE }
}
