//! The cost of an idle daemon: context switches and memory.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lab::Attachd;

use crate::Plan;
use crate::report::{Goal, Section, Table};
use crate::setup::{self, LIMIT, absent_evidence, absent_volume, wait_count};

/// Longer than the idle time of a thread for blocking work (10 s) and than the limit for an overdue event of udevd
/// (10 s).
const QUIET: Duration = Duration::from_secs(15);

/// Events of other programs' disks may wake the daemon at any time, which is not its own doing. So the measurement is
/// repeated.
const ATTEMPTS: usize = 5;

const SERVED: usize = 5;
const WAITING: usize = 1000;

/// Measures the context switches of a daemon that has nothing to do.
pub(crate) fn switches(plan: Plan) -> Result<Section> {
    let window = if plan.quick { Duration::from_secs(5) } else { Duration::from_mins(1) };
    let lab = setup::lab()?;
    let waiting: Vec<_> = (0..WAITING).map(|n| Ok((absent_volume(n)?, None))).collect::<Result<_>>()?;
    setup::seed(&lab, &waiting)?;
    let attachd = setup::start(&lab)?;
    let api = attachd.api();
    // A connected listener must not wake the daemon either.
    let _events = api.events()?;
    let mut disks = Vec::new();
    for _ in 0..SERVED {
        let volume = lab.volume();
        setup::intend(&api, &volume.id)?;
        let mut disk = setup::disk(&lab, &volume.serial, 1 << 20)?;
        disk.attach()?;
        api.wait_volume(&volume.id, "ready", LIMIT)?;
        disks.push(disk);
    }
    wait_count(&api, "waiting", WAITING)?;

    let mut attempt = 1;
    let (before, after, strangers) = loop {
        quiet(&attachd)?;
        println!("counting for {} s", window.as_secs());
        let kernel = udev::MonitorBuilder::new_kernel()?.match_subsystem_devtype("block", "disk")?.listen()?;
        let before = threads(attachd.pid()?)?;
        std::thread::sleep(window);
        let after = threads(attachd.pid()?)?;
        let strangers = kernel.iter().count();
        if strangers == 0 || attempt == ATTEMPTS {
            break (before, after, strangers);
        }
        println!("the kernel announced {strangers} disk events of other programs meanwhile: once more");
        attempt += 1;
    };

    let mut table = Table::new(&["thread", "voluntary", "involuntary"]);
    let mut sum = 0;
    for (id, now) in &after {
        let was = before.get(id);
        let [voluntary, involuntary] = [0, 1].map(|n| now.switches[n] - was.map_or(0, |was| was.switches[n]));
        sum += voluntary + involuntary;
        table.row([now.name.clone(), voluntary.to_string(), involuntary.to_string()]);
    }
    table.row(["all".to_owned(), sum.to_string(), format!("of {} threads", after.len())]);
    let about = format!(
        "{SERVED} volumes served, {WAITING} intents waiting, one listener on the event stream. Once the number of \
         threads had not changed for {} s, all context switches of all threads were counted over {} s. Meanwhile the \
         kernel announced {strangers} events of other programs' disks to everybody who listens, attachd included (up \
         to {ATTEMPTS} attempts to find a time without any).",
        QUIET.as_secs(),
        window.as_secs(),
    );
    let goals = vec![Goal {
        wanted: format!("no context switch in {} s", window.as_secs()),
        measured: format!("{sum}, with {strangers} events of other programs' disks"),
        met: sum == 0,
    }];
    Ok(Section { title: "Idle: context switches", about, tables: vec![table], goals, raw: Vec::new() })
}

/// Measures resident memory: idle, and with many mappings.
pub(crate) fn memory(plan: Plan) -> Result<Section> {
    let mappings = plan.count(10_000, 1000);
    let lab = setup::lab()?;
    let mut table = Table::new(&["", "resident MB", "anonymous MB", "file pages MB", "peak MB"]);
    let mut resident = Vec::new();
    let mut measure = |name: &str, attachd: &Attachd| {
        quiet(attachd)?;
        let figures = ["VmRSS", "RssAnon", "RssFile", "VmHWM"].map(|field| setup::memory_of(attachd, field));
        let figures = figures.into_iter().collect::<Result<Vec<f64>>>()?;
        resident.push(figures[0]);
        table.row([name.to_owned()].into_iter().chain(figures.iter().map(|mb| format!("{mb:.1}"))));
        anyhow::Ok(())
    };

    let mut attachd = setup::start(&lab)?;
    measure("idle", &attachd)?;
    attachd.terminate()?;
    let volumes = (0..mappings).map(|n| {
        let volume = absent_volume(n)?;
        Ok((volume, Some(absent_evidence(volume, n)?)))
    });
    setup::seed(&lab, &volumes.collect::<Result<Vec<_>>>()?)?;
    let mut attachd = setup::start(&lab)?;
    wait_count(&attachd.api(), "lost", mappings)?;
    measure(&format!("{mappings} mappings, just found lost"), &attachd)?;
    attachd.terminate()?;
    let attachd = setup::start(&lab)?;
    wait_count(&attachd.api(), "lost", mappings)?;
    measure(&format!("{mappings} mappings, started again"), &attachd)?;

    let many = resident[1].max(resident[2]);
    let goals = vec![
        Goal {
            wanted: "at most 12 MB resident when idle".into(),
            measured: format!("{:.1} MB", resident[0]),
            met: resident[0] <= 12.0,
        },
        Goal {
            wanted: "at most 40 MB resident with 10,000 mappings".into(),
            measured: format!("{many:.1} MB with {mappings}"),
            met: many <= 40.0,
        },
    ];
    let about =
        "Once the daemon is quiet, from /proc/PID/status (1 MB = 10⁶ bytes). The mappings' disks are not present: \
                 the first start finds every one of them lost and says so; the second only remembers."
            .into();
    Ok(Section { title: "Memory", about, tables: vec![table], goals, raw: Vec::new() })
}

/// Waits until the daemon's threads have been the same for a while, without a request to the daemon.
fn quiet(attachd: &Attachd) -> Result<()> {
    let ids = || anyhow::Ok(threads(attachd.pid()?)?.into_keys().collect::<Vec<u32>>());
    let begun = Instant::now();
    let (mut last, mut since) = (ids()?, Instant::now());
    while since.elapsed() < QUIET {
        std::thread::sleep(Duration::from_millis(200));
        let now = ids()?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
        if begun.elapsed() > LIMIT * 2 {
            println!("the daemon's threads come and go: other programs' disks keep it busy; measuring all the same");
            break;
        }
    }
    Ok(())
}

struct Thread {
    name: String,
    /// Voluntary and involuntary.
    switches: [u64; 2],
}

fn threads(pid: u32) -> Result<BTreeMap<u32, Thread>> {
    let mut threads = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        // A thread may end between the two reads.
        let Ok(status) = fs::read_to_string(task.join("status")) else { continue };
        let number =
            |name| setup::field(&status, name).and_then(|value| value.parse().ok()).context("the kernel's own format");
        let switches = [number("voluntary_ctxt_switches")?, number("nonvoluntary_ctxt_switches")?];
        let id = number("Pid")?;
        let name = setup::field(&status, "Name").unwrap_or_default().to_owned();
        threads.insert(u32::try_from(id)?, Thread { name, switches });
    }
    Ok(threads)
}
