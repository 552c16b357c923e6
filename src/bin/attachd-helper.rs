//! attachd-helper, the program that runs as root. Its socket starts it; `attachd::helper` describes its commands.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Err(error) = attachd::helper::run(&arguments) else { return ExitCode::SUCCESS };
    attachd::helper::journal(&format!("attachd-helper cannot serve: {error}"));
    ExitCode::FAILURE
}
