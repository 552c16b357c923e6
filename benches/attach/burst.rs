//! A thousand disks at once: none is lost, and all are served soon after the last event.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::{Context as _, Result};
use attachd::identity::VolumeId;
use lab::{Api, Disk, Lab, RmemMax, Volume};
use serde_json::Value;

use crate::Plan;
use crate::flood::{RMEM_MAX, Yardstick};
use crate::report::{Goal, Samples, Section, Table, ms};
use crate::setup::{self, Witness, now_ns, on_timeline, step_ns, time_ns, wait_count};

/// The size of a disk in bytes.
const SIZE: u64 = 64 << 10;

pub(crate) fn bench(plan: Plan) -> Result<Section> {
    // A lab has this many loop numbers.
    let count = plan.count(1000, 50);
    let mut lab = setup::lab()?;
    println!("preparing {count} disks");
    let mut disks = prepare(&mut lab, count)?;
    let volumes =
        disks.iter().map(|(volume, _)| Ok((volume.id.parse::<VolumeId>()?, None))).collect::<Result<Vec<_>>>()?;
    setup::seed(&lab, &volumes)?;
    // The same limit everywhere, whatever this machine allows.
    let _rmem = RmemMax::set(RMEM_MAX)?;
    let attachd = setup::start(&lab)?;
    let api = attachd.api();
    wait_count(&api, "waiting", count)?;
    let buffer = setup::health(&api)?["monitor"]["udev"]["receive_buffer_bytes"].as_u64().context("a number")?;
    let witness = Witness::new(&lab)?;
    let yardstick = Yardstick::start(&lab, usize::try_from(buffer)?)?;

    println!("attaching them as fast as udevd goes");
    let begun_ns = now_ns();
    let told = attach_all(&mut disks, &witness)?;
    let paced = Burst::finish(&api, begun_ns, &told, &yardstick)?;

    println!("taking them away, and attaching them while nobody reads");
    disks.iter_mut().try_for_each(|(_, disk)| disk.detach_keep())?;
    wait_count(&api, "lost", count)?;
    // Both sockets must be empty before the burst, and must hold all of it when reading begins.
    std::thread::sleep(Duration::from_millis(500));
    attachd.sigstop()?;
    yardstick.pause();
    let told = attach_all(&mut disks, &witness)?;
    let begun_ns = now_ns();
    attachd.sigcont()?;
    yardstick.resume();
    let held = Burst::finish(&api, begun_ns, &told, &yardstick)?;

    let mut table = Table::new(&[
        "burst",
        "disks",
        "events' span ms",
        "last event → all matched ms",
        "→ all ready ms",
        "ready per disk p50 ms",
        "p99 ms",
        "max ms",
        "not served",
        "overruns",
        "drops",
        "tokio-udev heard",
    ]);
    let mut goals = Vec::new();
    for (name, burst) in [("as fast as udevd goes", &paced), ("all at once", &held)] {
        table.row(burst.cells(name, count));
        let missing = count - burst.ready.len();
        goals.push(Goal {
            wanted: format!("{name}: none lost, all matched within 1 s of the last event"),
            measured: format!("{missing} lost, {} ms", ms(burst.matched_after)),
            met: missing == 0 && burst.matched_after < 1000.0,
        });
    }
    let about = format!(
        "{count} real disks with an intent each, their loop numbers prepared beforehand. First they are attached as \
         fast as the kernel and udevd go. Then all again while attachd is stopped (SIGSTOP) and tokio-udev's stream is \
         not read: both find every event in their sockets at one moment, which then counts as that of the last event. \
         Per disk: from udev's event, or that moment, to `ready` by the daemon's own clock; matched is its step \
         `proven`. Receive buffer of both: {buffer} bytes, what an unprivileged listener gets where rmem_max is \
         {RMEM_MAX}, as in most distributions. Overruns and drops are the daemon's, of udev's group."
    );
    let raw = vec![("as fast as udevd goes".to_owned(), paced.ready), ("all at once".to_owned(), held.ready)];
    Ok(Section { title: "A burst of disks", about, tables: vec![table], goals, raw })
}

/// Prepares disks whose loop numbers exist already, so that an attach is a single system call.
fn prepare(lab: &mut Lab, count: usize) -> Result<Vec<(Volume, Disk)>> {
    let mut disks = Vec::new();
    for _ in 0..count {
        let volume = lab.volume();
        let mut disk = setup::disk(lab, &volume.serial, SIZE)?;
        disk.attach()?;
        disk.detach_keep()?;
        disks.push((volume, disk));
    }
    // Their events must be over before anybody listens.
    lab.udevd().settle()?;
    Ok(disks)
}

/// Attaches all disks. Returns when udev announced each volume's disk, on the timeline's clock.
fn attach_all(disks: &mut [(Volume, Disk)], witness: &Witness) -> Result<HashMap<String, i128>> {
    let mut awaited = HashMap::new();
    for (volume, disk) in disks {
        disk.attach()?;
        awaited.insert((volume.serial.clone(), disk.diskseq()?.to_string()), volume.id.clone());
    }
    let mut told = HashMap::new();
    while !awaited.is_empty() {
        let key = |heard: &lab::Heard| (heard.get("ID_SERIAL").to_owned(), heard.get("DISKSEQ").to_owned());
        let heard = witness.wait_for(|heard| awaited.contains_key(&key(heard)))?;
        if let Some(id) = awaited.remove(&key(&heard)) {
            told.insert(id, on_timeline(heard.monotonic_ns));
        }
    }
    Ok(told)
}

struct Burst {
    span: f64,
    matched_after: f64,
    ready_after: f64,
    ready: Samples,
    overruns: u64,
    drops: Value,
    yardstick: usize,
}

impl Burst {
    /// Waits until all are served. Events before `begun_ns` (when nobody read them) count from that moment.
    fn finish(api: &Api, begun_ns: i128, told: &HashMap<String, i128>, yardstick: &Yardstick) -> Result<Self> {
        let counted = wait_count(api, "ready", told.len());
        let list = api.get("/api/v1/volumes?state=ready")?.expect(200)?;
        if let Err(error) = counted {
            println!("{error:#}");
        }
        let (first, last) = (told.values().min(), told.values().max().copied().context("some events")?);
        let mut span = Samples::default();
        span.add_between(*first.context("some events")?, last);
        let mut ready = Samples::default();
        let (mut last_matched, mut last_ready) = (last, last);
        for volume in list["volumes"].as_array().context("a list")? {
            let id = volume["volume_id"].as_str().context("a volume has an id")?;
            let told = told.get(id).context("a volume of ours")?;
            let since = time_ns(&volume["since"])?;
            ready.add_between((*told).max(begun_ns), since);
            last_ready = last_ready.max(since);
            let shown = api.get(&format!("/api/v1/volumes/{id}"))?.expect(200)?;
            last_matched = last_matched.max(step_ns(&shown, "proven")?);
        }
        let after_last = |at| {
            let mut after = Samples::default();
            after.add_between(last.max(begun_ns), at);
            after.max()
        };
        let (matched_after, ready_after) = (after_last(last_matched), after_last(last_ready));
        let udev = &setup::health(api)?["monitor"]["udev"];
        let (overruns, drops) = (udev["overruns"].as_u64().unwrap_or(0), udev["drops"].clone());
        let heard: HashSet<String> = yardstick.take().into_iter().collect();
        let wanted = told.keys().map(|id| Volume::of(id).serial);
        let yardstick = wanted.filter(|serial| heard.contains(serial)).count();
        Ok(Self { span: span.max(), matched_after, ready_after, ready, overruns, drops, yardstick })
    }

    fn cells(&self, name: &str, count: usize) -> Vec<String> {
        vec![
            name.to_owned(),
            count.to_string(),
            ms(self.span),
            ms(self.matched_after),
            ms(self.ready_after),
            ms(self.ready.p50()),
            ms(self.ready.p99()),
            ms(self.ready.max()),
            (count - self.ready.len()).to_string(),
            self.overruns.to_string(),
            self.drops.to_string(),
            format!("{} of {count}", self.yardstick),
        ]
    }
}
