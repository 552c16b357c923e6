//! From udev's event to "it is served" with each NBD server, and how that grows with the number of exports.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::listen::monotonic_ns;
use lab::{Api, Attachd, Events, Lab, nbd};

use crate::Plan;
use crate::common::{self, Helper};
use crate::report::{Samples, Section, Table, ms};
use crate::servers::{ADDRESS, SERVER_KINDS, ServerKind};
use crate::setup::{self, CONFIG, EXPORTS, LIMIT, Witness, absent_volume, on_timeline, step_ns, wait_count};

const SIZE: u64 = 1 << 20;

pub(crate) fn bench(plan: Plan) -> Result<Section> {
    let counts: &[usize] = if plan.quick { &[1, 100] } else { &[1, 100, 1000, 5000] };
    let mut rows: [Vec<Cell>; SERVER_KINDS.len()] = Default::default();
    // The compared servers run one after the other, so that a change of the machine's speed affects all alike.
    for count in counts {
        for (kind, row) in SERVER_KINDS.into_iter().zip(&mut rows) {
            // A lab belongs to its thread.
            let cell = std::thread::spawn(move || cell(kind, *count, plan)).join();
            let cell = cell.map_err(|_| anyhow::anyhow!("it panicked")).flatten();
            let cell = cell.with_context(|| format!("{}, {count} exports", kind.name()))?;
            let [before, at_once] = [&cell.before, &cell.at_once].map(|samples| ms(samples.p50()));
            println!("{count} exports, {}: p50 {before} ms, announced at the last moment {at_once} ms", kind.name());
            row.push(cell);
        }
    }
    let table = |title: &str, shown: fn(&Cell) -> String| {
        let head = counts.iter().map(|count| if *count == 1 { "1 export".into() } else { format!("{count} exports") });
        let head: Vec<String> = [title.to_owned()].into_iter().chain(head).collect();
        let mut table = Table::new(&head.iter().map(String::as_str).collect::<Vec<_>>());
        for (kind, row) in SERVER_KINDS.iter().zip(&rows) {
            table.row([kind.name().to_owned()].into_iter().chain(row.iter().map(shown)));
        }
        table
    };
    let tables = vec![
        table("announced before: p50 / p99 ms", |cell| two(cell.before.p50(), cell.before.p99())),
        table("of it, making the link / the handshake: p50 ms", |cell| two(cell.link.p50(), cell.handshake.p50())),
        table("announced at the last moment: p50 / p99 ms", |cell| two(cell.at_once.p50(), cell.at_once.p99())),
    ];
    let (quick, slow) = (samples(SERVER_KINDS[0], plan), samples(SERVER_KINDS[SERVER_KINDS.len() - 1], plan));
    let about = format!(
        "From udev's broadcast to the `ready` event on an open event stream, as above, attachd doing all of the work, \
         with each server in a lab of its own. Exports: so many are there, the attached disk's own included. With \
         nbd-server, the others are volumes that are announced and have no disk: attachd has written their sections, \
         and the server lists them (besides those of earlier disks, which it never forgets). With nbdkit, they are as \
         many announced volumes, and links in its folder that all lead to one present disk; so many disks are beyond \
         this machine. Announced before: the server knows the export when the disk comes (nbd-server was asked); \
         one link and one handshake are left to do. Announced at the last moment: the disk is attached as \
         soon as the intent is answered; the check of all files, the signal and the server's reading come into it, and \
         attachd's pause of 200 ms or more where the server had not read all when it was asked. Socket-activated: the \
         bench starts the server of each connection in systemd's place; it makes Diffie-Hellman parameters for itself \
         before it answers, which takes it a different time each time. Disks per figure: {} and {}, {} and {} where \
         socket-activated; the p99 of so few is their maximum.",
        quick.0, quick.1, slow.0, slow.1,
    );
    let mut raw = Vec::new();
    for (kind, row) in SERVER_KINDS.iter().zip(rows) {
        for (count, Cell { before, link, handshake, at_once }) in counts.iter().zip(row) {
            let of = [("before", before), ("link", link), ("handshake", handshake), ("at the last moment", at_once)];
            let name = |what| format!("{}; {count} exports; {what}", kind.name()).replace(',', "");
            raw.extend(of.map(|(what, samples)| (name(what), samples)));
        }
    }
    Ok(Section { title: "Event to served, by NBD server", about, tables, goals: Vec::new(), raw })
}

fn two(first: f64, second: f64) -> String {
    format!("{first:.2} / {second:.2}")
}

/// Returns how many disks are attached, announced early and at the last moment.
fn samples(kind: ServerKind, plan: Plan) -> (usize, usize) {
    let (before, at_once) = if kind.is_slow() { (8, 4) } else { (20, 8) };
    (plan.count(before, 3), plan.count(at_once, 2))
}

/// The measurements of one server with a number of exports.
#[derive(Default)]
struct Cell {
    before: Samples,
    at_once: Samples,
    /// Recorded → published.
    link: Samples,
    /// Published → ready.
    handshake: Samples,
}

fn cell(kind: ServerKind, count: usize, plan: Plan) -> Result<Cell> {
    let (before, at_once) = samples(kind, plan);
    let mut stage = Stage::new(kind, count)?;
    let mut cell = Cell::default();
    for _ in 0..before {
        stage.turn(kind, When::Before, &mut cell)?;
    }
    for _ in 0..at_once {
        stage.turn(kind, When::AtOnce, &mut cell)?;
    }
    // The other exports are still there.
    stage.wait_listed(count - 1)?;
    Ok(cell)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Before,
    AtOnce,
}

/// A lab with a server, the daemon, and everything besides the disk that is attached. Fields are dropped in order.
struct Stage {
    events: Events,
    api: Api,
    attachd: Attachd,
    _helper: Helper,
    _server: crate::servers::Server,
    _neighbour: Option<lab::Disk>,
    witness: Witness,
    lab: Lab,
}

impl Stage {
    fn new(kind: ServerKind, count: usize) -> Result<Self> {
        let mut lab = Lab::builder().build()?;
        let mut server = kind.install(&lab)?;
        lab.attachd_config(&format!("{CONFIG}{}", server.config()?))?;
        server.start(&mut lab)?;
        let others = (1..count).map(absent_volume).collect::<Result<Vec<_>>>()?;
        if !others.is_empty() {
            setup::seed(&lab, &others.iter().map(|volume| (*volume, None)).collect::<Vec<_>>())?;
        }
        let helper = Helper::start_with(Stdio::null());
        let witness = Witness::new(&lab)?;
        let attachd = setup::start(&lab)?;
        let api = attachd.api();
        wait_count(&api, "waiting", others.len())?;
        let mut neighbour = None;
        if kind == ServerKind::Nbdkit && !others.is_empty() {
            let (volume, disk) = common::served(&lab, &api);
            // attachd leaves foreign links alone; under a volume's own name it would remove the link at once.
            for other in &others {
                symlink(volume.link(), Path::new(EXPORTS).join(format!("other-{other}")))?;
            }
            neighbour = Some(disk);
        }
        let stage = Self {
            events: api.events()?,
            api,
            attachd,
            _helper: helper,
            _server: server,
            _neighbour: neighbour,
            witness,
            lab,
        };
        stage.wait_listed(others.len())?;
        // A reload that is not needed may still be running.
        std::thread::sleep(Duration::from_millis(500));
        Ok(stage)
    }

    /// Waits until the server offers this many exports.
    fn wait_listed(&self, count: usize) -> Result<()> {
        let begun = Instant::now();
        while nbd::list(ADDRESS)?.len() < count {
            ensure!(
                begun.elapsed() < LIMIT,
                "the server does not know of {count} exports: {}",
                self.attachd.stderr_text()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Waits until the server knows the export; only nbd-server can know it before it is published.
    fn wait_known(&self, export: &str) -> Result<()> {
        let begun = Instant::now();
        while nbd::info(ADDRESS, export)? != nbd::REP_ACK {
            ensure!(begun.elapsed() < LIMIT, "the server does not know {export}: {}", self.attachd.stderr_text());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn turn(&mut self, kind: ServerKind, when: When, cell: &mut Cell) -> Result<()> {
        let volume = self.lab.volume();
        let mut disk = setup::disk(&self.lab, &volume.serial, SIZE)?;
        setup::intend(&self.api, &volume.id)?;
        if when == When::Before {
            if kind != ServerKind::Nbdkit {
                self.wait_known(&volume.export())?;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        disk.attach()?;
        let from = self.witness.announced(&disk)?.monotonic_ns;
        let served = self.events.wait_for(|event| event["volume_id"] == volume.id && event["event"] == "ready", LIMIT);
        served.with_context(|| self.attachd.stderr_text())?;
        let to = on_timeline(monotonic_ns());

        let shown = self.api.get(&format!("/api/v1/volumes/{}", volume.id))?.expect(200)?;
        // On a busy machine the witness may be woken after the daemon, so the earlier of the two counts.
        let from = on_timeline(from).min(step_ns(&shown, "heard")?);
        if when == When::Before {
            let [recorded, published, ready] = ["recorded", "published", "ready"].map(|step| step_ns(&shown, step));
            let (recorded, published, ready) = (recorded?, published?, ready?);
            cell.before.add_between(from, to);
            cell.link.add_between(recorded, published);
            cell.handshake.add_between(published, ready);
        } else {
            cell.at_once.add_between(from, to);
        }
        setup::withdraw(&self.api, &volume.id)?;
        disk.detach()
    }
}
