//! From event to ready while other clients list everything, again and again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::listen::monotonic_ns;
use lab::{Api, Attachd, Events, Lab};

use crate::Plan;
use crate::report::{Goal, Samples, Section, Table, ms};
use crate::setup::{self, LIMIT, Witness, absent_evidence, absent_volume, on_timeline, step_ns};

/// The number of clients that list everything in a loop.
const CLIENTS: usize = 4;

/// The number of attaches in a row; quiet and listed blocks alternate.
const BLOCK: usize = 10;

/// The limit of a turn of the engine.
const LONGEST: Duration = Duration::from_millis(5);

const LIST: &[u8] = b"GET /api/v1/volumes HTTP/1.1\r\nHost: attachd\r\nConnection: close\r\n\r\n";

pub(crate) fn bench(plan: Plan) -> Result<Section> {
    let volumes = plan.count(20_000, 1000);
    let blocks = plan.count(6, 1);
    let lab = setup::lab()?;
    // Half of the volumes have a mapping of an earlier boot, the others wait for their disk.
    let known = (1..=volumes).map(|n| {
        let volume = absent_volume(n)?;
        Ok((volume, (n % 2 == 0).then(|| absent_evidence(volume, n)).transpose()?))
    });
    setup::seed(&lab, &known.collect::<Result<Vec<_>>>()?)?;
    let witness = Witness::new(&lab)?;
    let attachd = setup::start(&lab)?;
    let api = attachd.api();
    setup::wait_count(&api, "waiting", volumes.div_ceil(2))?;
    setup::wait_count(&api, "lost", volumes / 2)?;
    std::thread::sleep(Duration::from_secs(5));
    let mut events = api.events()?;

    let (mut quiet, mut listed) = (Samples::default(), Samples::default());
    let counts = Counts::default();
    for _ in 0..blocks {
        block(&lab, &attachd, &witness, &mut events, &mut quiet)?;
        while_listing(&api, &counts, || block(&lab, &attachd, &witness, &mut events, &mut listed))?;
    }
    let (turns, long) = turns(&api)?;

    let mut table = Table::of_samples("broadcast → the caller knows", &[]);
    table.samples("quiet", &quiet, []);
    table.samples(&format!("while {CLIENTS} clients list"), &listed, []);
    let ratio = listed.p50() / quiet.p50();
    let goals = vec![
        Goal {
            wanted: "listed at most 2 × quiet (p50)".into(),
            measured: format!("{ratio:.2} × ({} against {} ms)", ms(listed.p50()), ms(quiet.p50())),
            met: ratio <= 2.0,
        },
        Goal {
            wanted: format!("no turn of the engine longer than {} ms", LONGEST.as_millis()),
            measured: format!("{long} of {turns} were"),
            met: long == 0,
        },
    ];
    let about = format!(
        "{volumes} volumes are on record. {CLIENTS} clients list all of them in a loop ({} lists of {:.1} MB each on average, which \
         takes much of both processors); between {BLOCK} attaches with that and {BLOCK} without they pause. The engine's turns are those of the \
         whole run, start included, from the daemon's own metrics.",
        counts.lists.load(Ordering::Relaxed),
        counts.average(),
    );
    let raw = vec![("quiet".to_owned(), quiet), ("listed".to_owned(), listed)];
    Ok(Section { title: "Event to ready while others list", about, tables: vec![table], goals, raw })
}

#[derive(Default)]
pub(crate) struct Counts {
    lists: AtomicU64,
    bytes: AtomicU64,
}

impl Counts {
    /// Returns the average size of a list in MB.
    fn average(&self) -> f64 {
        let kilobytes = self.bytes.load(Ordering::Relaxed) / self.lists.load(Ordering::Relaxed).max(1) / 1000;
        f64::from(u32::try_from(kilobytes).unwrap_or(u32::MAX)) / 1000.0
    }
}

/// Runs `work` while clients list everything.
pub(crate) fn while_listing(api: &Api, counts: &Counts, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let going = std::sync::atomic::AtomicBool::new(true);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    while going.load(Ordering::Relaxed) {
                        let answer = api.raw(LIST, LIMIT)?;
                        ensure!(answer.starts_with(b"HTTP/1.1 200"), "a list was refused");
                        counts.lists.fetch_add(1, Ordering::Relaxed);
                        counts.bytes.fetch_add(answer.len() as u64, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        let worked = work();
        going.store(false, Ordering::Relaxed);
        for client in clients {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked")).flatten()?;
        }
        worked
    })
}

fn block(lab: &Lab, attachd: &Attachd, witness: &Witness, events: &mut Events, samples: &mut Samples) -> Result<()> {
    let api = attachd.api();
    for _ in 0..BLOCK {
        let volume = lab.volume();
        setup::intend(&api, &volume.id)?;
        let mut disk = setup::disk(lab, &volume.serial, 1 << 20)?;
        std::thread::sleep(Duration::from_millis(50));
        disk.attach()?;
        let from = witness.announced(&disk)?.monotonic_ns;
        let served = events.wait_for(|event| event["volume_id"] == volume.id && event["event"] == "ready", LIMIT);
        served.with_context(|| attachd.stderr_text())?;
        let to = on_timeline(monotonic_ns());
        let shown = api.get(&format!("/api/v1/volumes/{}", volume.id))?.expect(200)?;
        // On a busy machine the witness may be woken after the daemon, so the earlier of the two counts.
        samples.add_between(on_timeline(from).min(step_ns(&shown, "heard")?), to);
        setup::withdraw(&api, &volume.id)?;
        disk.detach()?;
    }
    Ok(())
}

/// Returns how many turns the engine has taken, and how many of them were too long.
fn turns(api: &Api) -> Result<(u64, u64)> {
    let metrics = api.get("/metrics")?.text;
    let figure = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse::<u64>().ok()).with_context(|| format!("no {name}"))
    };
    let all = figure("attachd_engine_turn_seconds_count")?;
    let short = figure(&format!("attachd_engine_turn_seconds_bucket{{le=\"{}\"}}", LONGEST.as_secs_f64()))?;
    Ok((all, all - short))
}
