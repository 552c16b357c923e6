//! attachd-helper, the one program that runs as root. Started by its socket; `attachd::helper` says what it does.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match attachd::helper::run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            attachd::helper::journal(&format!("attachd-helper cannot serve: {error}"));
            ExitCode::FAILURE
        }
    }
}
