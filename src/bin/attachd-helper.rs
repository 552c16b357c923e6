//! attachd-helper, the one program that runs as root. Started by its socket; `attachd::helper` says what it does.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Err(error) = attachd::helper::run(&arguments) else { return ExitCode::SUCCESS };
    attachd::helper::journal(&format!("attachd-helper cannot serve: {error}"));
    ExitCode::FAILURE
}
