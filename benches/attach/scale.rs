//! A match costs the same with 10 intents and with 100,000.

use std::sync::mpsc;
use std::thread;

use anyhow::{Context as _, Result};
use lab::{Api, Attachd, Lab};

use crate::Plan;
use crate::report::{Goal, Samples, Section, Table, ms};
use crate::setup::{self, LIMIT, absent_volume, step_ns, wait_count};

pub(crate) fn bench(plan: Plan) -> Result<Section> {
    let rounds = plan.count(300, 10);
    let counts = [10, plan.count(100_000, 1000)];
    // A lab belongs to a thread, so each side has one. They take turns, and the waiting one is stopped (SIGSTOP).
    let sides = counts.map(Side::spawn);
    for side in &sides {
        side.done.recv().context("a side ended early")?;
    }
    for round in 0..rounds {
        for turn in 0..2 {
            let side = &sides[(round + turn) % 2];
            side.go.send(()).context("a side ended early")?;
            side.done.recv().context("a side ended early")?;
        }
        if (round + 1) % 50 == 0 {
            println!("{} rounds", round + 1);
        }
    }
    let samples = sides.map(|Side { go, done: _, thread }| {
        drop(go);
        thread.join().map_err(|_| anyhow::anyhow!("a side panicked")).flatten()
    });
    let [few, many] = samples;
    let (few, many) = (few?, many?);

    let mut table = Table::of_samples("heard → evidence complete", &[]);
    for (count, samples) in counts.iter().zip([&few, &many]) {
        table.samples(&format!("{count} intents"), samples, []);
    }
    let ratio = many.p50() / few.p50();
    let goals = vec![Goal {
        wanted: "the same within 10 % (p50)".into(),
        measured: format!("{:+.1} % ({} against {} ms)", (ratio - 1.0) * 100.0, ms(many.p50()), ms(few.p50())),
        met: (ratio - 1.0).abs() <= 0.1,
    }];
    let about = "From the daemon's own timeline: the event is taken from the socket → every check of its evidence has \
                 passed. Two labs with a daemon each, which attach a disk in turn; the other daemon is stopped \
                 meanwhile."
        .into();
    let raw = counts.iter().map(|count| format!("{count} intents")).zip([few, many]).collect();
    Ok(Section { title: "Matching among many intents", about, tables: vec![table], goals, raw })
}

/// One lab with its daemon, on its own thread. Ends when `go` is dropped.
struct Side {
    go: mpsc::Sender<()>,
    done: mpsc::Receiver<()>,
    thread: thread::JoinHandle<Result<Samples>>,
}

impl Side {
    fn spawn(intents: usize) -> Self {
        let (go, told) = mpsc::channel();
        let (tell, done) = mpsc::channel();
        let thread = thread::spawn(move || play(intents, &told, &tell));
        Self { go, done, thread }
    }
}

fn play(intents: usize, told: &mpsc::Receiver<()>, tell: &mpsc::Sender<()>) -> Result<Samples> {
    let lab = setup::lab()?;
    // Without the intent that each turn adds.
    let waiting = (1..intents).map(|n| Ok((absent_volume(n)?, None))).collect::<Result<Vec<_>>>()?;
    setup::seed(&lab, &waiting)?;
    let attachd = setup::start(&lab)?;
    let api = attachd.api();
    wait_count(&api, "waiting", waiting.len())?;
    println!("{intents} intents: ready to go");
    attachd.sigstop()?;
    tell.send(())?;
    let mut samples = Samples::default();
    while told.recv().is_ok() {
        attachd.sigcont()?;
        attach(&lab, &attachd, &api, &mut samples)?;
        attachd.sigstop()?;
        tell.send(())?;
    }
    Ok(samples)
}

fn attach(lab: &Lab, attachd: &Attachd, api: &Api, samples: &mut Samples) -> Result<()> {
    let volume = lab.volume();
    setup::intend(api, &volume.id)?;
    let mut disk = setup::disk(lab, &volume.serial, 1 << 20)?;
    // The events that it received while stopped must be handled first.
    thread::sleep(std::time::Duration::from_millis(30));
    disk.attach()?;
    let shown = api.wait_volume(&volume.id, "ready", LIMIT).with_context(|| attachd.stderr_text())?;
    samples.add_between(step_ns(&shown, "heard")?, step_ns(&shown, "proven")?);
    setup::withdraw(api, &volume.id)?;
    disk.detach()
}
