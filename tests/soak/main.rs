//! A soak: everything at random from a seed, for as long as is wished, and every word of attachd's is held against the
//! world. `make soak MINUTES=20` (not part of the tests: it takes time, and what it does depends on time).
//!
//! * [`plot`] acts: intents, withdrawals, disks that come and go, restarts, `kill -9`; [`faults`] make readings fail, parts
//!   fall silent, and descriptors, threads and room run out for a moment.
//! * [`judge`] is the NBD client that comes at random moments: what is `ready` before and after must be served, whole, with
//!   the volume's own bytes; what is not wanted or not there must not be.
//! * [`copier`] is the client that stays: it must not be cut off, nor its disk be taken from under it.
//! * Now and then everything comes to rest ([`rest`]): then the API, the rows, the claims and the exports must agree with what
//!   was answered, and every wanted disk must be served. Memory and descriptors are taken then.
//!
//! Until half of the time the daemon is killed now and then; the life that begins there lasts to the end, and its memory must
//! stay level. A failure shows the seed, what was done last, and what the daemon said.
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

/// How long until everything is to come to rest again.
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
