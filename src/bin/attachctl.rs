//! attachctl, the command-line client. `attachctl --help` lists its commands.

use std::process::ExitCode;

use attachd::ctl::Arguments;
use clap::Parser;

fn main() -> ExitCode {
    Arguments::parse().run()
}
