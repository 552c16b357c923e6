//! `attachctl check-config`: the same as `attachd check-config`, without attachd.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::failure::{FAILED, Failure};
use super::output::Output;
use crate::config::{self, ConfigMistake};
use crate::reason::Code;

/// Which configuration to check.
#[derive(clap::Args)]
pub(super) struct Options {
    /// The configuration file.
    #[arg(long, value_name = "PATH", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
}

pub(super) fn run(options: &Options, output: &Output) -> Result<ExitCode, Failure> {
    if !output.is_json() {
        return Ok(config::report(&options.config));
    }
    config::check(&options.config).map_err(|invalid| {
        let problems: Vec<Value> = invalid.problems.iter().map(as_json).collect();
        let details = json!({ "path": options.config, "problems": problems });
        Failure::with(FAILED, Code::InvalidConfig, invalid.to_string(), details)
    })?;
    output.json(&json!({ "path": options.config, "valid": true }).to_string())?;
    Ok(ExitCode::SUCCESS)
}

fn as_json(problem: &ConfigMistake) -> Value {
    let (line, column) = problem.place.unzip();
    json!({ "line": line, "column": column, "message": problem.message })
}
