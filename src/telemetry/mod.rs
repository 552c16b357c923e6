//! What operators see: one entry with fields per event in the journal, or one line on standard error.

pub mod journal;
pub mod manager;

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::Invalid;

/// The exit status for an invalid configuration (`EX_CONFIG` of sysexits.h): a restart would not help.
const EXIT_CONFIG: u8 = 78;

/// The exit status for any other failure.
const EXIT_FAILURE: u8 = 1;

/// Sends the program's events to the journal if standard error is the journal, else to standard error. `ATTACHD_LOG`
/// can be `error`, `warn`, `info`, `debug` or `trace`. Keep the returned guard until the end.
pub fn init() -> Option<journal::FlushGuard> {
    let level = std::env::var("ATTACHD_LOG").ok().and_then(|level| level.parse().ok()).unwrap_or(LevelFilter::INFO);
    if journal::is_standard_error()
        && let Ok((journal, flush)) = journal::Journal::start()
    {
        tracing_subscriber::registry().with(journal).with(level).init();
        return Some(flush);
    }
    let terminal = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
    lines.with_ansi(terminal).with_target(false).init();
    None
}

/// Reports why the program ends, and returns the exit status.
pub fn failed(error: &anyhow::Error) -> u8 {
    tracing::error!("attachd cannot go on: {error:#}");
    if error.is::<Invalid>() { EXIT_CONFIG } else { EXIT_FAILURE }
}
