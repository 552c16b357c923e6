//! The benchmarks: attachd beside a polling loop, a shell script and the floor, in one run on one machine.
//!
//! ```text
//! cargo bench --bench attach                     everything; writes docs/benchmarks.md and docs/bench-raw/
//! cargo bench --bench attach -- served burst     only these; writes below the target folder
//! cargo bench --bench attach -- --quick          small counts, to see that it works; writes below the target folder
//! ```
//!
//! Everything is real (udevd, loop devices, nbdkit, the daemon as its own user) in the tests' lab; see
//! `tests/support`. Only CloudStack is a stand-in (`tests/support/cloud`). Needs root. No time is asserted: goals are printed beside the measurements.

mod backends;
mod burst;
mod crowd;
mod daemon;
mod flood;
mod idle;
mod intents;
mod listing;
mod operations;
mod predecessor;
mod report;
mod scale;
mod served;
mod servers;
mod setup;
mod startup;
mod throughput;
mod turns;

/// Helpers of the tests: the helper, a served volume.
#[path = "../../tests/common/mod.rs"]
mod common;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use report::Section;

/// The size of a run.
#[derive(Debug, Clone, Copy)]
struct Plan {
    quick: bool,
}

impl Plan {
    /// Returns the count of a real run, or one that only shows that the benchmark works.
    fn count(self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }
}

type Bench = fn(Plan) -> Result<Section>;

/// The quiet ones come first, so that no leftover of a flood disturbs them.
const BENCHES: [(&str, Bench); 14] = [
    ("idle", idle::switches),
    ("memory", idle::memory),
    ("served", served::bench),
    ("operations", operations::bench),
    ("backends", backends::bench),
    ("throughput", throughput::bench),
    ("scale", scale::bench),
    ("startup", startup::bench),
    ("intents", intents::bench),
    ("listing", listing::bench),
    ("crowd", crowd::bench),
    ("turns", turns::bench),
    ("burst", burst::bench),
    ("flood", flood::bench),
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut plan = Plan { quick: false };
    let mut wanted: Vec<String> = Vec::new();
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            // Cargo's own argument.
            "--bench" => {}
            "--quick" => plan.quick = true,
            name if BENCHES.iter().any(|(known, _)| *known == name) => wanted.push(name.to_owned()),
            other => bail!("{other}? There are --quick and {}", BENCHES.map(|(name, _)| name).join(", ")),
        }
    }
    let machine = report::machine()?;
    println!("{machine}");
    let mut sections = Vec::new();
    for (name, bench) in BENCHES {
        if wanted.is_empty() || wanted.iter().any(|asked| asked == name) {
            println!("\n== {name}");
            // Each runs in its own thread: a lab's namespaces belong to the thread that made it.
            let done = std::thread::spawn(move || bench(plan)).join();
            let section = done.map_err(|_| anyhow::anyhow!("it panicked")).flatten().with_context(|| name)?;
            println!("\n{}", section.markdown(name));
            sections.push((name, section));
        }
    }
    // A partial or quick run must not be taken for the real figures.
    let whole = wanted.is_empty() && !plan.quick;
    let place = if whole { concat!(env!("CARGO_MANIFEST_DIR"), "/docs") } else { env!("CARGO_TARGET_TMPDIR") };
    report::write(Path::new(place), &machine, &sections)?;
    println!("written to {place}/benchmarks.md");
    Ok(())
}
