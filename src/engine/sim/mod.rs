//! A simulation of the whole engine in its own world and time. A seed decides what happens next. After each step the
//! invariants are checked against what is true in that world. The same seed gives the same run.
//!
//! [`play`] runs the steps. [`moves`] and [`faults`] are the actions that may be chosen. [`check`] compares the
//! results with [`model`], which consists of [`host`], [`store`] and [`server`]. The engine sees all of it through
//! [`tools`]. The work that it has started waits in [`tasks`].

mod callers;
mod check;
mod faults;
mod host;
mod model;
mod moves;
mod play;
mod server;
mod store;
mod tasks;
mod tools;
mod trace;

use play::play;

/// The number of steps of each run in `make test`.
const STEPS: u64 = 10_000;

/// Runs a seed. If the run fails, the panic tells how to repeat it.
fn played(seed: u64, steps: u64) -> play::Ended {
    play(seed, steps).unwrap_or_else(|failed| {
        let play::Failed { step, what, last } = failed;
        panic!(
            "{what}\nat step {step} of seed {seed}; before that:\n{last}repeat it: make sim SEEDS={seed} STEPS={step}"
        )
    })
}

fn fixed(seeds: std::ops::Range<u64>) {
    let mut seen = std::collections::BTreeMap::new();
    for seed in seeds {
        for (what, times) in played(seed, STEPS).seen {
            *seen.entry(what).or_insert(0) += times;
        }
    }
    // Shows that the run is not empty: each of these events has happened.
    println!("{seen:?}");
    for what in
        ["ready", "kill", "start", "client", "intend true", "withdraw true", "seal true", "unseal true", "release true"]
    {
        assert!(seen.get(what).is_some_and(|times| *times > 10), "{what}: {seen:?}");
    }
}

#[test]
fn twenty_histories_of_ten_thousand_steps_break_nothing() {
    fixed(0..20);
}

#[test]
fn twenty_more_histories_of_ten_thousand_steps_break_nothing() {
    fixed(20..40);
}

#[test]
fn the_same_seed_gives_the_same_history_and_another_seed_another() {
    let [one, again, other] = [77, 77, 78].map(|seed| played(seed, 2_000));
    assert_eq!((one.sum, one.lines), (again.sum, again.lines));
    assert_ne!(one.sum, other.sum);
    assert!(one.lines > 1_000, "{}", one.lines);
}

/// `make sim SEEDS=7,8 STEPS=100000`.
#[test]
#[ignore = "as long as is wished: make sim"]
fn histories_as_wished() {
    let wished = |name: &str| std::env::var(name).unwrap_or_default();
    let steps = wished("ATTACHD_SIM_STEPS").parse().unwrap_or(STEPS);
    for seed in wished("ATTACHD_SIM_SEEDS").split([',', ' ']).filter_map(|seed| seed.parse().ok()) {
        let ended = played(seed, steps);
        println!("seed {seed}: {steps} steps, {} lines, {:016x}: {:?}", ended.lines, ended.sum, ended.seen);
    }
}
