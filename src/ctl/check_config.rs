//! `attachctl check-config`: what `attachd check-config` does, without attachd.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::failure::{FAILED, Failure};
use super::output::Output;
use crate::config::{self, Problem};

/// Which configuration.
#[derive(clap::Args)]
pub(super) struct Options {
    /// The configuration file.
    #[arg(long, value_name = "PATH", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
}

pub(super) fn run(options: &Options, output: &Output) -> ExitCode {
    if !output.is_json() {
        return config::report(&options.config);
    }
    let result = match config::load(&options.config) {
        Ok(_) => output.json(&json!({ "path": options.config, "valid": true }).to_string()),
        Err(invalid) => {
            let problems: Vec<Value> = invalid.problems.iter().map(told).collect();
            let details = json!({ "path": options.config, "problems": problems });
            Err(Failure::with(FAILED, "INVALID_CONFIG", invalid.to_string(), details))
        }
    };
    result.map_or_else(|failure| output.failure(&failure).into(), |()| ExitCode::SUCCESS)
}

fn told(problem: &Problem) -> Value {
    let (line, column) = problem.place.unzip();
    json!({ "line": line, "column": column, "message": problem.message })
}
