//! The length of the engine's turns: during a turn, no other input is handled.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use attachd::device::evidence::Evidence;
use attachd::identity::VolumeId;
use lab::{Api, Attachd, Disk, Freezable, Lab};
use serde_json::json;

use crate::Plan;
use crate::listing::{Counts, while_listing};
use crate::report::{Goal, Section, Table};
use crate::setup::{self, CONFIG, LIMIT, STORE, absent_evidence, absent_volume};

/// The limit of a turn.
const LONGEST: Duration = Duration::from_millis(5);

/// Volumes whose disks are present and served.
const SERVED: usize = 20;

/// How often each action is done.
const TIMES: usize = 5;

pub(crate) fn bench(plan: Plan) -> Result<Section> {
    let volumes = plan.count(20_000, 1000);
    let mut lab = setup::lab()?;
    // A separate file system, which can be frozen.
    let own = Freezable::mount(&lab)?;
    setup::seed(&lab, &known(volumes)?)?;
    let store = format!("{}/attachd.db", Freezable::PLACE);
    std::fs::copy(STORE, &store)?;
    setup::give(Path::new(&store))?;
    let config = |history: &str| lab.attachd_config(&format!("{CONFIG}[store]\npath = \"{store}\"\n{history}"));
    config("")?;
    let attachd = setup::start(&lab)?;
    let api = attachd.api();
    setup::wait_count(&api, "lost", volumes / 2)?;
    let mut phases = Phases { before: Histogram::default(), rows: Vec::new() };
    phases.end("start", &api)?;
    let _disks = served(&lab, &api)?;
    phases.end(&format!("{SERVED} disks attached"), &api)?;
    while_listing(&api, &Counts::default(), || {
        std::thread::sleep(Duration::from_secs(if plan.quick { 1 } else { 10 }));
        Ok(())
    })?;
    phases.end("4 clients list", &api)?;
    for _ in 0..TIMES {
        api.post("/api/v1/resync", &json!({}))?.expect(200)?;
    }
    phases.end("resync", &api)?;
    for n in 0..TIMES {
        config(&format!("[history]\ndays = {}\n", 30 + n))?;
        reload(&attachd, &api)?;
    }
    phases.end("reload", &api)?;
    hang(&own, &api)?;
    phases.end("the store hangs", &api)?;
    for _ in 0..TIMES {
        lab.nbdkit_kill()?;
        setup::wait_count(&api, "ready", 0)?;
        lab.nbdkit_start()?;
        setup::wait_count(&api, "ready", SERVED)?;
    }
    phases.end("the NBD server restarts", &api)?;

    let mut table = Table::new(&["", "turns", "longer than 1 ms", "2 ms", "5 ms", "10 ms"]);
    let long = phases.rows.iter().map(|(_, turns)| turns.longer(LONGEST)).sum::<u64>();
    let all = phases.rows.iter().map(|(_, turns)| turns.count).sum::<u64>();
    for (name, turns) in &phases.rows {
        let longer = [1, 2, 5, 10].map(|ms| turns.longer(Duration::from_millis(ms)).to_string());
        table.row([name.clone(), turns.count.to_string()].into_iter().chain(longer));
    }
    let goals = vec![Goal {
        wanted: format!("no turn of the engine longer than {} ms", LONGEST.as_millis()),
        measured: format!("{long} of {all} were"),
        met: long == 0,
    }];
    let about = format!(
        "{volumes} volumes are on record, half of them with a mapping of an earlier boot; {SERVED} are served. From the daemon's own metrics \
         (`attachd_engine_turn_seconds`), each thing done {TIMES} times; the store hangs for 3 s. A turn that the kernel interrupts for \
         another program counts in full."
    );
    Ok(Section { title: "The engine's turns", about, tables: vec![table], goals, raw: Vec::new() })
}

fn known(volumes: usize) -> Result<Vec<(VolumeId, Option<Evidence>)>> {
    (1..=volumes)
        .map(|n| {
            let volume = absent_volume(n)?;
            Ok((volume, (n % 2 == 0).then(|| absent_evidence(volume, n)).transpose()?))
        })
        .collect()
}

fn served(lab: &Lab, api: &Api) -> Result<Vec<Disk>> {
    let mut disks = Vec::new();
    for _ in 0..SERVED {
        let volume = lab.volume();
        setup::intend(api, &volume.id)?;
        let mut disk = setup::disk(lab, &volume.serial, 1 << 20)?;
        disk.attach()?;
        api.wait_volume(&volume.id, "ready", LIMIT)?;
        disks.push(disk);
    }
    Ok(disks)
}

/// Returns when the settings are in use.
fn reload(attachd: &Attachd, api: &Api) -> Result<()> {
    let begun = attachd.stderr_text().matches("the configuration is read again").count();
    attachd.sighup()?;
    let deadline = Instant::now() + LIMIT;
    while attachd.stderr_text().matches("the configuration is read again").count() == begun {
        ensure!(Instant::now() < deadline, "no reload");
        setup::health(api)?;
    }
    Ok(())
}

/// Makes the store hang, with writes in the meantime.
fn hang(own: &Freezable, api: &Api) -> Result<()> {
    let frozen = own.freeze()?;
    let begun = Instant::now();
    for n in 1_000_000.. {
        if begun.elapsed() > Duration::from_secs(3) {
            break;
        }
        let volume = absent_volume(n)?;
        api.post("/api/v1/intents", &json!({ "volume_id": volume.to_string() }))?;
        setup::health(api)?;
    }
    drop(frozen);
    let deadline = Instant::now() + LIMIT;
    while setup::health(api)?["store"]["error"].is_string() {
        ensure!(Instant::now() < deadline, "the store does not come back");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// The measurements of each phase.
struct Phases {
    before: Histogram,
    rows: Vec<(String, Histogram)>,
}

impl Phases {
    fn end(&mut self, name: &str, api: &Api) -> Result<()> {
        let now = Histogram::read(api)?;
        self.rows.push((name.to_owned(), now.since(&self.before)));
        self.before = now;
        Ok(())
    }
}

/// The daemon's histogram of turns.
#[derive(Debug, Clone, Default)]
struct Histogram {
    count: u64,
    /// Upper bounds in seconds, as text, with the number of turns that took at most that long.
    buckets: Vec<(String, u64)>,
}

impl Histogram {
    fn read(api: &Api) -> Result<Self> {
        const NAME: &str = "attachd_engine_turn_seconds";
        let metrics = api.get("/metrics")?.text;
        let mut histogram = Self::default();
        for line in metrics.lines() {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            if name == format!("{NAME}_count") {
                histogram.count = value.parse()?;
            }
            let bound = name.strip_prefix(&format!("{NAME}_bucket{{le=\"")).and_then(|rest| rest.strip_suffix("\"}"));
            if let Some(bound) = bound.filter(|bound| *bound != "+Inf") {
                histogram.buckets.push((bound.to_owned(), value.parse()?));
            }
        }
        ensure!(!histogram.buckets.is_empty(), "no {NAME}");
        Ok(histogram)
    }

    fn since(&self, before: &Self) -> Self {
        let buckets = self.buckets.iter().map(|(bound, n)| (bound.clone(), n - before.at_most(bound))).collect();
        Self { count: self.count - before.count, buckets }
    }

    fn at_most(&self, bound: &str) -> u64 {
        self.buckets.iter().find(|(at, _)| at == bound).map_or(0, |(_, n)| *n)
    }

    /// Returns how many turns took longer than a bound of the histogram.
    fn longer(&self, than: Duration) -> u64 {
        self.count - self.at_most(&than.as_secs_f64().to_string())
    }
}
