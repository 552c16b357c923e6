//! From udev's event to "it is served": attachd, a polling loop, a shell script and the floor, in rounds.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use attachd::device::evidence::{self, Evidence, Ground};
use attachd::device::facts::LinkTarget;
use attachd::device::sysfs::Sysfs;
use attachd::device::table::Device;
use attachd::device::{DevNum, scheme};
use attachd::export::probe;
use attachd::export::tls::Tls;
use attachd::identity::VolumeId;
use attachd::store::{Change, Store};
use jiff::Timestamp;
use lab::listen::monotonic_ns;
use lab::{Disk, Lab, NbdClient, Volume, people};
use sqlx::ConnectOptions as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::Plan;
use crate::daemon::{self, Daemon};
use crate::report::{Goal, Samples, Section, Table, ms};
use crate::setup::{self, EXPORTS, LIMIT, PORT, Witness, on_timeline, runtime, step_ns};

const SIZE: u64 = 1 << 20;

/// The interval of the polling loop, as in the predecessor and most scripts.
const POLL: Duration = Duration::from_millis(100);

const SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), PORT);

/// The steps of the daemon's timeline, in order.
const STEPS: [&str; 5] = ["heard", "proven", "recorded", "published", "ready"];

pub(crate) fn bench(plan: Plan) -> Result<Section> {
    let rounds = plan.count(100, 8);
    let lab = setup::lab()?;
    let stage = Stage { witness: Witness::new(&lab)?, lab };
    let mut daemon = Daemon::start(&stage.lab)?;
    let mut poll = Poll::new(&stage.lab.dir().join("poll"))?;
    let script = Script::new(&stage.lab.dir().join("script"))?;
    let mut floor = Floor::new(&stage.lab.dir().join("floor"))?;
    floor.choose_handshake(&stage, plan.count(30, 5))?;

    let mut times = Times::default();
    for round in 0..rounds {
        // Every contender is first equally often, so that a drift affects all alike.
        for turn in 0..4 {
            match (round + turn) % 4 {
                0 => attachd_turn(&mut daemon, &stage, &mut times)?,
                1 => poll.turn(&stage, &mut times.poll)?,
                2 => script.turn(&stage, &mut times.script)?,
                _ => floor.turn(&stage, &mut times)?,
            }
        }
        if (round + 1) % 10 == 0 {
            let [attachd, poll, script, floor] =
                [&times.attachd, &times.poll, &times.script, &times.floor].map(|samples| ms(samples.p50()));
            println!("{} rounds, p50: attachd {attachd}, poll {poll}, script {script}, floor {floor} ms", round + 1);
        }
    }
    Ok(times.section(&floor))
}

/// What all contenders share: the same udevd, the same nbdkit, the same kind of disk.
struct Stage {
    witness: Witness,
    lab: Lab,
}

impl Stage {
    /// Makes a volume and its disk, not attached yet.
    fn disk(&self) -> Result<(Volume, Disk)> {
        let volume = self.lab.volume();
        let disk = setup::disk(&self.lab, &volume.serial, SIZE)?;
        Ok((volume, disk))
    }

    /// As [`Stage::disk`], for a contender that writes no claims: the claim exists before the disk comes, as with
    /// attachd.
    fn claimed_disk(&self) -> Result<(Volume, Disk)> {
        let (volume, disk) = self.disk()?;
        self.lab.claim(&volume.serial)?;
        Ok((volume, disk))
    }

    /// Attaches the disk and returns when udev's event about it was received (`CLOCK_MONOTONIC`).
    fn attach(&self, disk: &mut Disk) -> Result<u64> {
        disk.attach()?;
        Ok(self.witness.announced(disk)?.monotonic_ns)
    }

    /// Undoes what a contender without attachd did.
    fn clear(&self, volume: &Volume, mut disk: Disk) -> Result<()> {
        fs::remove_file(Path::new(EXPORTS).join(volume.export()))?;
        disk.detach()?;
        self.lab.unclaim(&volume.serial)
    }
}

#[derive(Default)]
struct Times {
    attachd: Samples,
    poll: Samples,
    script: Samples,
    floor: Samples,
    /// broadcast → heard → … → ready → the caller.
    steps: [Samples; 6],
    /// Commit, link, handshake.
    floor_steps: [Samples; 3],
}

/// Takes attachd's turn.
fn attachd_turn(daemon: &mut Daemon, stage: &Stage, times: &mut Times) -> Result<()> {
    let (volume, mut disk) = stage.disk()?;
    daemon.wake()?;
    setup::intend(&daemon.api, &volume.id)?;
    daemon::caught_up();
    let from = stage.attach(&mut disk)?;
    let served = daemon.events.wait_for(|event| event["volume_id"] == volume.id && event["event"] == "ready", LIMIT);
    served.with_context(|| daemon.attachd.stderr_text())?;
    let to = on_timeline(monotonic_ns());

    let shown = daemon.api.get(&format!("/api/v1/volumes/{}", volume.id))?.expect(200)?;
    // On a busy machine the witness may be woken after the daemon, so the earlier of the two counts.
    let from = on_timeline(from).min(step_ns(&shown, "heard")?);
    times.attachd.add_between(from, to);
    let mut last = from;
    for (step, samples) in STEPS.iter().zip(&mut times.steps) {
        let at = step_ns(&shown, step)?;
        samples.add_between(last, at);
        last = at;
    }
    times.steps[5].add_between(last, to);

    setup::withdraw(&daemon.api, &volume.id)?;
    disk.detach()?;
    daemon.rest()
}

/// A loop that reads the by-id link every 100 ms and then does the same work with the same functions, in line.
struct Poll {
    runtime: Runtime,
    sysfs: Sysfs,
    ground: Ground,
    store: Store,
    _task: JoinHandle<()>,
}

impl Poll {
    fn new(folder: &Path) -> Result<Self> {
        fs::create_dir(folder)?;
        let runtime = runtime()?;
        let sysfs = Sysfs::new(scheme::by_name("loop").into_iter().collect(), "/etc/attachd/host-disks".into());
        let ground = Ground { boot_id: sysfs.boot_id()?, nbd_gid: people::NBD.id };
        let (store, task) = runtime.block_on(setup::open_store(&folder.join("poll.db")))?;
        Ok(Self { runtime, sysfs, ground, store, _task: task })
    }

    fn turn(&mut self, stage: &Stage, samples: &mut Samples) -> Result<()> {
        let (volume, mut disk) = stage.claimed_disk()?;
        let id: VolumeId = volume.id.parse()?;
        self.runtime.block_on(self.store.write(vec![Change::Intend(setup::intent(id))]))?;
        let link = volume.link();
        let link = link.to_str().context("a link's path is text")?;
        let (from, to) = std::thread::scope(|scope| {
            let polling = scope.spawn(|| self.runtime.block_on(self.serve(id, link)));
            // The disk comes at a random moment between two polls.
            std::thread::sleep(POLL.mul_f64(random(&volume)));
            let from = stage.attach(&mut disk);
            (from, polling.join())
        });
        let to = to.map_err(|_| anyhow::anyhow!("the polling loop panicked"))??;
        samples.add_between(from?.into(), to.into());
        stage.clear(&volume, disk)
    }

    /// Returns when the volume is served.
    async fn serve(&self, id: VolumeId, link: &str) -> Result<u64> {
        let evidence = loop {
            match self.look(link) {
                Some(evidence) => break evidence,
                None => tokio::time::sleep(POLL).await,
            }
        };
        self.store.write(vec![Change::Map(id, evidence.clone())]).await?;
        ensure!(self.sysfs.still(evidence.devnum, evidence.diskseq).is_here(), "the disk was exchanged");
        // attachd makes links only in a folder of its own user, so this one is made directly.
        symlink(&evidence.link, Path::new(EXPORTS).join(id.export_name()))?;
        let (served, _goodbye) =
            probe::probe(probe::greet(&probe::Endpoint::new(SERVER, Tls::none())).await?, &id.export_name()).await?;
        ensure!(served.size == evidence.size_bytes, "{served:?}");
        Ok(monotonic_ns())
    }

    fn look(&self, link: &str) -> Option<Evidence> {
        let Ok(LinkTarget::Device(devnum, _)) = self.sysfs.resolve(link) else { return None };
        let facts = self.sysfs.read(devnum).here()?;
        let device = Device { facts, reading: 1, settled: true, heard_at: None };
        evidence::check(&self.ground, &[&device], None, Timestamp::now())?.ok()
    }
}

/// Returns a number from 0 to 1, derived from a random volume's id.
fn random(volume: &Volume) -> f64 {
    u32::from_str_radix(&volume.id[..8], 16).map_or(0.5, |number| f64::from(number) / f64::from(u32::MAX))
}

/// What an operator would write: `udevadm wait`, then the same work with command-line tools.
struct Script {
    script: PathBuf,
    database: PathBuf,
}

const SCRIPT: &str = r#"#!/bin/bash
# Waits for a volume's disk, records it and serves it.
set -euo pipefail
link=$1 serial=$2 volume=$3 db=$4
udevadm wait "$link"
disk=/sys/class/block/$(basename "$(readlink -f "$link")")
seq=$(<"$disk/diskseq") devnum=$(<"$disk/dev") ro=$(<"$disk/ro") sectors=$(<"$disk/size")
backing=$(<"$disk/loop/backing_file")
[[ ${backing##*/} == "$serial.img" ]]
[[ -z $(ls "$disk/holders") ]]
! grep -q " $devnum " /proc/self/mountinfo
[[ $(<"$disk/diskseq") == "$seq" ]]
size=$((sectors * 512))
boot=$(</proc/sys/kernel/random/boot_id)
sqlite3 "$db" "PRAGMA synchronous=FULL; INSERT OR REPLACE INTO mappings
  (volume_id, serial, scheme, device_path, devnum, diskseq, size_bytes, read_only, boot_id, proven_at) VALUES
  ('$volume', '$serial', 'loop', '$link', '$devnum', $seq, $size, $ro, '$boot', unixepoch())"
ln -s "$link" "/run/attachd/exports/migration-vol-$volume"
[[ $(nbdinfo --size "nbd://127.0.0.1:10809/migration-vol-$volume") == "$size" ]]
echo served
"#;

impl Script {
    fn new(folder: &Path) -> Result<Self> {
        fs::create_dir(folder)?;
        let (script, database) = (folder.join("serve.sh"), folder.join("script.db"));
        fs::write(&script, SCRIPT)?;
        create_store(&database)?;
        Ok(Self { script, database })
    }

    fn turn(&self, stage: &Stage, samples: &mut Samples) -> Result<()> {
        let (volume, mut disk) = stage.claimed_disk()?;
        let mut command = Command::new("bash");
        command.arg(&self.script).arg(volume.link()).args([&volume.serial, &volume.id]).arg(&self.database);
        let mut running = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("running bash")?;
        wait_for_child(&running)?;
        let from = stage.attach(&mut disk)?;
        let mut line = String::new();
        BufReader::new(running.stdout.take().context("piped")?).read_line(&mut line)?;
        let to = monotonic_ns();
        ensure!(running.wait()?.success() && line == "served\n", "the script failed");
        samples.add_between(from.into(), to.into());
        stage.clear(&volume, disk)
    }
}

/// Returns a moment after the script has started udevadm, so that it waits when the disk comes.
fn wait_for_child(script: &Child) -> Result<()> {
    let started = Instant::now();
    let children = format!("/proc/{0}/task/{0}/children", script.id());
    while fs::read_to_string(&children)?.is_empty() {
        ensure!(started.elapsed() < LIMIT, "the script does not start udevadm");
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(50));
    Ok(())
}

/// The floor: the work that cannot be left out. It is one synced commit, one link and one handshake, one after the
/// other. There is no event to receive, no evidence to read and no caller to notify.
struct Floor {
    runtime: Runtime,
    connection: SqliteConnection,
    /// The faster of the two.
    handshake: Handshake,
    chosen: String,
}

#[derive(Debug, Clone, Copy)]
enum Handshake {
    /// Plain blocking calls.
    Blocking,
    /// The daemon's own, on the runtime.
    Runtime,
}

/// What attachd commits between the event and `ready`: this one statement (see `src/store/write.rs`).
const UPSERT: &str = "INSERT INTO mappings \
    (volume_id, serial, scheme, device_path, devnum, diskseq, size_bytes, read_only, boot_id, proven_at) \
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (volume_id) DO UPDATE SET \
    serial = excluded.serial, scheme = excluded.scheme, device_path = excluded.device_path, devnum = excluded.devnum, \
    diskseq = excluded.diskseq, size_bytes = excluded.size_bytes, read_only = excluded.read_only, \
    boot_id = excluded.boot_id, proven_at = excluded.proven_at";

impl Floor {
    fn new(folder: &Path) -> Result<Self> {
        fs::create_dir(folder)?;
        let file = folder.join("floor.db");
        create_store(&file)?;
        let options = SqliteConnectOptions::new()
            .filename(&file)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            // Here there are no intents that the mappings could refer to.
            .foreign_keys(false);
        let runtime = runtime()?;
        let connection = runtime.block_on(options.connect())?;
        Ok(Self { runtime, connection, handshake: Handshake::Blocking, chosen: String::new() })
    }

    /// Chooses the handshake that is faster here, so that the floor really is the floor.
    fn choose_handshake(&mut self, stage: &Stage, times: usize) -> Result<()> {
        let (volume, mut disk) = stage.claimed_disk()?;
        stage.attach(&mut disk)?;
        symlink(volume.link(), Path::new(EXPORTS).join(volume.export()))?;
        let (mut blocking, mut runtime) = (Samples::default(), Samples::default());
        for _ in 0..times {
            for (kind, samples) in [(Handshake::Blocking, &mut blocking), (Handshake::Runtime, &mut runtime)] {
                self.handshake = kind;
                let begun = Instant::now();
                let (size, client) = self.shake(&volume.export())?;
                samples.add(begun.elapsed());
                ensure!(size == SIZE, "{size} bytes served");
                drop(client);
            }
        }
        self.handshake = if blocking.p50() <= runtime.p50() { Handshake::Blocking } else { Handshake::Runtime };
        self.chosen = format!(
            "{} (p50 of the handshake alone: blocking calls {} ms, the daemon's own on its runtime {} ms)",
            match self.handshake {
                Handshake::Blocking => "plain blocking calls",
                Handshake::Runtime => "the daemon's own",
            },
            ms(blocking.p50()),
            ms(runtime.p50()),
        );
        stage.clear(&volume, disk)
    }

    /// Returns the size, and the connection, whose end does not count.
    fn shake(&self, export: &str) -> Result<(u64, Option<NbdClient>)> {
        match self.handshake {
            Handshake::Blocking => {
                let client = NbdClient::connect(&SERVER.to_string(), export)?;
                Ok((client.size(), Some(client)))
            }
            Handshake::Runtime => {
                let handshake = async {
                    probe::probe(probe::greet(&probe::Endpoint::new(SERVER, Tls::none())).await?, export).await
                };
                Ok((self.runtime.block_on(handshake)?.0.size, None))
            }
        }
    }

    fn turn(&mut self, stage: &Stage, times: &mut Times) -> Result<()> {
        let (volume, mut disk) = stage.claimed_disk()?;
        // Everything that can be prepared is prepared, and the file's caches are in the same state as for the others.
        let (link, place, export) = (volume.link(), Path::new(EXPORTS).join(volume.export()), volume.export());
        stage.attach(&mut disk)?;
        let (major, minor) = disk.devnum();
        let diskseq = i64::try_from(disk.diskseq()?)?;
        let upsert = sqlx::query(UPSERT)
            .bind(&volume.id)
            .bind(&volume.serial)
            .bind("loop")
            .bind(link.to_str().context("a link's path is text")?)
            .bind(DevNum { major, minor }.to_string())
            .bind(diskseq)
            .bind(i64::try_from(SIZE)?)
            .bind(false)
            .bind("00000000-0000-0000-0000-000000000000")
            .bind(Timestamp::now().as_microsecond());

        let begun = Instant::now();
        self.runtime.block_on(upsert.execute(&mut self.connection))?;
        let committed = Instant::now();
        symlink(&link, &place)?;
        let linked = Instant::now();
        let (size, client) = self.shake(&export)?;
        let served = Instant::now();

        ensure!(size == SIZE, "{size} bytes served");
        drop(client);
        times.floor.add(served.duration_since(begun));
        let steps = [committed.duration_since(begun), linked.duration_since(committed), served.duration_since(linked)];
        times.floor_steps.iter_mut().zip(steps).for_each(|(samples, time)| samples.add(time));
        stage.clear(&volume, disk)
    }
}

/// Makes the daemon's own tables in another file.
fn create_store(file: &Path) -> Result<()> {
    runtime()?.block_on(async {
        let (store, task) = setup::open_store(file).await?;
        drop(store);
        Ok(task.await?)
    })
}

impl Times {
    fn section(self, floor: &Floor) -> Section {
        let base = self.floor.p50();
        let mut contenders = Table::of_samples("contender", &["p50 ÷ floor", "p99 ÷ floor"]);
        let named = [
            ("attachd", &self.attachd),
            ("100 ms poll of the link", &self.poll),
            ("script around `udevadm wait`", &self.script),
            ("floor", &self.floor),
        ];
        for (name, samples) in named {
            let ratios = [samples.p50() / base, samples.p99() / self.floor.p99()];
            contenders.samples(name, samples, ratios.map(|ratio| format!("{ratio:.2}")));
        }
        let mut steps = Table::of_samples("attachd's steps (its own timeline)", &["floor's p50 ms"]);
        let names = [
            "broadcast → heard",
            "heard → proven (sysfs read, evidence)",
            "proven → recorded (the commit)",
            "recorded → published (the link)",
            "published → ready (the handshake)",
            "ready → the caller's event stream",
        ];
        for (n, (name, samples)) in names.into_iter().zip(&self.steps).enumerate() {
            let same = n.checked_sub(2).and_then(|n| self.floor_steps.get(n));
            steps.samples(name, samples, [same.map_or("-".to_owned(), |same| ms(same.p50()))]);
        }
        let ratio = self.attachd.p50() / base;
        let faster = self.poll.p50() / self.attachd.p50();
        let goals = vec![
            Goal {
                wanted: "attachd at most 1.5 × the floor (p50)".into(),
                measured: format!("{ratio:.2} × ({} against {} ms)", ms(self.attachd.p50()), ms(base)),
                met: ratio <= 1.5,
            },
            Goal {
                wanted: "attachd at least 8 × faster than the poll (p50)".into(),
                measured: format!("{faster:.1} × ({} against {} ms)", ms(self.attachd.p50()), ms(self.poll.p50())),
                met: faster >= 8.0,
            },
        ];
        let about = format!(
            "From udev's broadcast, as a bare socket receives it (or attachd, where it is woken first), to the moment \
             a caller knows that the volume is served. attachd: the `ready` event on an open event stream. Poll: looks \
             for the link every {} ms, at a random phase, then does the same work with attachd's own functions. \
             Script: bash, `udevadm wait` begun before the disk came, `sqlite3`, `ln`, `nbdinfo`. Floor: as many \
             synced commits as attachd makes before `ready` (one), one link, one handshake, straight after each other; \
             handshake by {}. The contenders take turns in one lab, with one udevd and one nbdkit, on one disk; \
             attachd is stopped (SIGSTOP) while it is not its turn.",
            POLL.as_millis(),
            floor.chosen,
        );
        let mut raw = vec![
            ("attachd".to_owned(), self.attachd),
            ("poll".to_owned(), self.poll),
            ("script".to_owned(), self.script),
            ("floor".to_owned(), self.floor),
        ];
        let names = STEPS.into_iter().chain(["caller"]).map(|step| format!("attachd to {step}"));
        raw.extend(names.zip(self.steps));
        raw.extend(
            ["commit", "link", "handshake"].map(|step| format!("floor {step}")).into_iter().zip(self.floor_steps),
        );
        Section { title: "Event to served", about, tables: vec![contenders, steps], goals, raw }
    }
}
