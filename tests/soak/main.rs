//! A soak test: random actions from a seed, for as long as asked for, and everything that attachd reports is compared
//! with the real world. `make soak MINUTES=20` (not part of the tests: it takes long, and its actions depend on
//! timing).
//!
//! * [`plot`] acts: intents, withdrawals, disks that come and go, restarts, `kill -9`. [`faults`] make reads fail,
//!   parts fall silent, and descriptors, threads and disk space run out for a moment.
//! * [`judge`] is an NBD client that connects at random moments. A volume that is `ready` before and after must be
//!   served completely, with its own bytes. A volume that is not wanted or has no disk must not be served.
//! * [`copier`] is a client that stays. It must not be disconnected, and its disk must not be taken away.
//! * Now and then everything comes to rest ([`rest`]). Then the API, the rows, the claims and the exports must agree
//!   with the answers, and every wanted disk must be served. Memory and descriptors are measured then.
//!
//! During the first half the daemon is killed now and then. The last start runs to the end, and its memory must stay
//! level. A failure shows the seed, the last actions, and what the daemon logged.
#![allow(clippy::unwrap_used, reason = "a panic here is a failure of the soak")]

#[path = "../common/mod.rs"]
mod common;
mod copier;
mod faults;
mod judge;
mod ledger;
mod plot;
mod rest;
mod scene;

use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use ledger::Ledger;
use scene::Scene;

/// How often a line of counts is printed.
const TELL: Duration = Duration::from_secs(30);

/// The time until everything must come to rest again.
const CALM: Duration = Duration::from_secs(25);

fn main() -> ExitCode {
    let minutes: f64 = wish("ATTACHD_SOAK_MINUTES").unwrap_or(1.0);
    let by_clock = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let seed: u64 = wish("ATTACHD_SOAK_SEED").unwrap_or_else(by_clock);
    println!("soak: {minutes} min, seed {seed} (the same again: ATTACHD_SOAK_SEED={seed})");
    let mut scene = Scene::new();
    let ledger = scene.ledger.clone();
    let mut random = fastrand::Rng::with_seed(seed);
    let watchers: Vec<_> =
        [judge::follow as fn(&Ledger, fastrand::Rng), judge::follow, copier::follow, judge::look_around]
            .into_iter()
            .map(|follow| {
                let (ledger, random) = (ledger.clone(), random.fork());
                std::thread::spawn(move || follow(&ledger, random))
            })
            .collect();
    let begun = Instant::now();
    let end = begun + Duration::from_secs_f64(minutes * 60.0);
    let half = begun + Duration::from_secs_f64(minutes * 30.0);
    let (mut tell_at, mut calm_at) = (begun + TELL, begun + CALM);
    while Instant::now() < end && !ledger.failed() {
        scene.act(&mut random, Instant::now() < half);
        if Instant::now() >= tell_at {
            println!("{:>5} s  {}", begun.elapsed().as_secs(), ledger.counts());
            tell_at += TELL;
        }
        if Instant::now() >= calm_at {
            scene.rest(Instant::now() >= half);
            calm_at = Instant::now() + CALM;
        }
    }
    if !ledger.failed() {
        scene.rest(true);
    }
    ledger.over.store(true, Ordering::Relaxed);
    for watcher in watchers {
        if watcher.join().is_err() {
            ledger.fail("a watcher has panicked: see above");
        }
    }
    println!("{:>5} s  {}", begun.elapsed().as_secs(), ledger.counts());
    scene.verdict(seed)
}

fn wish<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}
