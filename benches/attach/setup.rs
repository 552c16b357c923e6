//! What the benchmarks share: a lab with a daemon, a witness of udev's events, a store filled beforehand.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use attachd::clock;
use attachd::device::evidence::Evidence;
use attachd::identity::VolumeId;
use attachd::projection;
use attachd::store::{Change, News, Options, Store};
use attachd::volume::{Intent, IntentOrigin, State};
use jiff::Timestamp;
use lab::{Api, Attachd, AttachdOptions, BareListener, Disk, DiskOptions, Heard, Lab, people};
use serde_json::{Value, json};

/// Longer than anything that works takes.
pub(crate) const LIMIT: Duration = Duration::from_mins(1);

/// The path of the daemon's store.
pub(crate) const STORE: &str = "/var/lib/attachd/attachd.db";

/// The folder of exports.
pub(crate) const EXPORTS: &str = "/run/attachd/exports";

/// The NBD server's port.
pub(crate) const PORT: u16 = 10809;

/// Loop devices in place of virtio disks, as in the tests.
pub(crate) const CONFIG: &str = "[device]\nschemes = [\"loop\"]\n";

/// Makes a lab whose NBD server runs, without the daemon.
pub(crate) fn lab() -> Result<Lab> {
    let mut lab = Lab::builder().build()?;
    lab.attachd_config(CONFIG)?;
    lab.nbdkit_start()?;
    Ok(lab)
}

/// Starts the daemon; returns when it answers.
pub(crate) fn start(lab: &Lab) -> Result<Attachd> {
    lab.not_restarted("a bench measures");
    let options = AttachdOptions { limit: LIMIT, ..AttachdOptions::default() };
    lab.attachd_start(Path::new(env!("CARGO_BIN_EXE_attachd")), &options)
}

/// Makes a sparse disk: no benchmark reads its bytes.
pub(crate) fn disk(lab: &Lab, serial: &str, size: u64) -> Result<Disk> {
    lab.disk_with(serial, size, DiskOptions { blank: true, ..DiskOptions::default() })
}

/// Announces a volume.
pub(crate) fn intend(api: &Api, volume_id: &str) -> Result<()> {
    api.post("/api/v1/intents", &json!({ "volume_id": volume_id }))?.expect(201).map(drop)
}

/// Withdraws a volume, by force: a handshake of the benchmark may still be open.
pub(crate) fn withdraw(api: &Api, volume_id: &str) -> Result<()> {
    api.delete(&format!("/api/v1/intents/{volume_id}?force=true"))?.expect(200).map(drop)
}

/// Returns the daemon's health.
pub(crate) fn health(api: &Api) -> Result<Value> {
    Ok(api.get("/api/v1/health")?.json)
}

/// Waits until this many volumes are in a state. Asks rarely, so that it does not disturb the measurement.
pub(crate) fn wait_count(api: &Api, state: &str, count: usize) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let volumes = &health(api)?["volumes"];
        if volumes[state].as_u64() == Some(u64::try_from(count)?) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("not {count} volumes {state} after {LIMIT:?}: {volumes}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Returns a time in an answer of the API, in nanoseconds since 1970.
pub(crate) fn time_ns(value: &Value) -> Result<i128> {
    let text = value.as_str().with_context(|| format!("{value} is no time"))?;
    Ok(text.parse::<Timestamp>()?.as_nanosecond())
}

/// Returns when a volume last reached a step of its story, from the answer of `GET /api/v1/volumes/{id}`.
pub(crate) fn step_ns(shown: &Value, step: &str) -> Result<i128> {
    let timeline = shown["timeline"].as_array().context("a volume has a timeline")?;
    let entry = timeline.iter().rfind(|entry| entry["event"] == step).with_context(|| format!("no {step}"))?;
    time_ns(&entry["at"])
}

/// Returns the present time, on the clock of the daemon's timeline.
pub(crate) fn now_ns() -> i128 {
    Timestamp::now().as_nanosecond()
}

/// Converts a time of `CLOCK_MONOTONIC` to the clock of the daemon's timeline.
pub(crate) fn on_timeline(monotonic_ns: u64) -> i128 {
    now_ns() - i128::from(lab::listen::monotonic_ns()) + i128::from(monotonic_ns)
}

/// Makes a runtime like the daemon's, for its library's own functions.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")
}

/// Returns the n-th of many volumes that never get a disk. No other lab has them.
pub(crate) fn absent_volume(n: usize) -> Result<VolumeId> {
    Ok(format!("{n:08x}-be2c-4be2-8c00-000000000000").parse()?)
}

/// Returns evidence for such a volume, as an earlier boot would have left it.
pub(crate) fn absent_evidence(volume: VolumeId, n: usize) -> Result<Evidence> {
    let serial = volume.serial();
    Ok(Evidence {
        serial,
        scheme: "loop".into(),
        link: format!("/dev/disk/by-id/loop-{serial}"),
        devnum: format!("259:{n}").parse().map_err(|()| anyhow::anyhow!("a device number"))?,
        diskseq: n.try_into()?,
        size_bytes: 64 << 10,
        read_only: false,
        boot_id: "another boot".into(),
        at: Timestamp::now(),
    })
}

/// Returns an intent that was just accepted.
pub(crate) fn intent(volume: VolumeId) -> Intent {
    let created_at = clock::wall();
    Intent {
        volume,
        vm_id: "vm".into(),
        size_bytes: None,
        deadline_seconds: None,
        deadline: None,
        created_at,
        uid: Some(0),
        origin: IntentOrigin::Announced,
    }
}

/// Opens attachd's store as the daemon does.
pub(crate) async fn open_store(path: &Path) -> Result<(Store, tokio::task::JoinHandle<()>)> {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let options = Options { path, history_days: 90, boot_id: boot_id.trim(), spare: Path::new("/run/attachd") };
    let (store, task, _) = Store::open(options).await?;
    Ok((store, task))
}

/// Fills the store with attachd's own code (waiting, or `ready` if there is evidence), claims every serial and gives
/// everything to the daemon's user. The daemon must not run.
pub(crate) fn seed(lab: &Lab, volumes: &[(VolumeId, Option<Evidence>)]) -> Result<()> {
    runtime()?.block_on(async {
        let (store, task) = open_store(Path::new(STORE)).await?;
        let projection = projection::start(&store, PORT);
        for some in volumes.chunks(1000) {
            store
                .write(some.iter().flat_map(|(volume, evidence)| changes(*volume, evidence.as_ref())).collect())
                .await?;
        }
        drop(store);
        task.await?;
        projection.await?;
        anyhow::Ok(())
    })?;
    give(Path::new(STORE))?;
    volumes.iter().try_for_each(|(volume, _)| lab.claim(volume.serial().as_str()))
}

fn changes(volume: VolumeId, evidence: Option<&Evidence>) -> Vec<Change> {
    let mut changes = vec![Change::Intend(intent(volume))];
    if let Some(evidence) = evidence {
        changes.push(Change::Map(volume, evidence.clone()));
        changes.push(Change::News(volume, News::Stand(State::Ready, None, clock::wall())));
    }
    changes
}

/// Gives a file to the daemon's user.
pub(crate) fn give(path: &Path) -> Result<()> {
    let id = Some(people::ATTACHD.id);
    chown(path, id, id).with_context(|| format!("chown {}", path.display()))
}

/// Empties the folder of exports, as a reboot does.
pub(crate) fn unpublish_all() -> Result<()> {
    for entry in fs::read_dir(EXPORTS)? {
        fs::remove_file(entry?.path())?;
    }
    Ok(())
}

/// Receives udev's events with its own thread and buffer: it records when udev sent what, whatever else is busy.
pub(crate) struct Witness {
    heard: mpsc::Receiver<Heard>,
    /// The thread ends when this is dropped.
    _life: Arc<()>,
}

impl Witness {
    /// Listens in the lab of the calling thread.
    pub(crate) fn new(lab: &Lab) -> Result<Self> {
        let ear = lab.bare_listener()?;
        let (sender, heard) = mpsc::channel();
        let life = Arc::new(());
        let alive = Arc::downgrade(&life);
        std::thread::spawn(move || while alive.strong_count() > 0 && pass_on(&ear, &sender) {});
        Ok(Self { heard, _life: life })
    }

    /// Returns the first event from now on that `wanted` accepts. Earlier events are dropped.
    pub(crate) fn wait_for(&self, wanted: impl Fn(&Heard) -> bool) -> Result<Heard> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let heard = self.heard.recv_timeout(left).context("udev did not say what was waited for")?;
            if wanted(&heard) {
                return Ok(heard);
            }
        }
    }

    /// Returns udev's event of an attached disk: link made, owner set, about this very attachment.
    pub(crate) fn announced(&self, disk: &Disk) -> Result<Heard> {
        let (serial, diskseq) = (disk.serial(), disk.diskseq()?.to_string());
        self.wait_for(|heard| heard.get("ID_SERIAL") == serial && heard.get("DISKSEQ") == diskseq)
    }
}

/// Passes on one event. Returns false when the receiver is gone.
fn pass_on(ear: &BareListener, to: &mpsc::Sender<Heard>) -> bool {
    match ear.next(Duration::from_millis(200)) {
        Ok(Some(heard)) => to.send(heard).is_ok(),
        Ok(None) => true,
        Err(_) => false,
    }
}

/// Returns a memory figure of a process in MB, from /proc/PID/status.
pub(crate) fn memory_of(attachd: &Attachd, name: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", attachd.pid()?))?;
    let kib = field(&status, name).and_then(|value| value.strip_suffix(" kB")?.trim().parse::<f64>().ok());
    Ok(kib.with_context(|| format!("no {name}"))? * 1024.0 / 1e6)
}

/// Returns a line of such a file.
pub(crate) fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}
