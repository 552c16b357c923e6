//! The tools of the simulation. A request of the engine waits at a gate. Its result is what is true when the gate is
//! opened.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::{oneshot, watch};

use super::host::{NBD, Readable};
use super::model::Model;
use super::server::Proof;
use super::tasks::LATE;
use crate::claims::Restored;
use crate::clock::{Clock, Steady};
use crate::device::DevNum;
use crate::device::facts::{Facts, LinkTarget};
use crate::device::found::Found;

use crate::engine::tools::{AllDisks, Claimant, Disks, Goodbye, Greeted, Helper, NbdServer, Outside, Truth};
use crate::export::backend::{Backend, Check, Contents, Which};
use crate::export::probe::{ProbeError, Served};
use crate::folder::Folder;
use crate::helper_client::{Exclusive, HelperError, Holders};
use crate::identity::{Serial, VolumeId};
use crate::reason::HelperCode;
use crate::store::{Change, News, StoreError};

/// The wall clock's time at the start of the run, in microseconds.
const BEGIN: i64 = 1_700_000_000_000_000;

/// The world, shared by all tools. Cheap to clone.
#[derive(Clone)]
pub(super) struct Tool(Arc<Inner>);

struct Inner {
    model: Mutex<Model>,
    /// Microseconds that have passed.
    now: AtomicU64,
    /// By how much the wall clock was set.
    shift: AtomicI64,
    begin: Instant,
}

impl Tool {
    pub(super) fn new(model: Model) -> Self {
        let inner =
            Inner { model: Mutex::new(model), now: AtomicU64::new(0), shift: AtomicI64::new(0), begin: Instant::now() };
        Self(Arc::new(inner))
    }

    pub(super) fn model(&self) -> MutexGuard<'_, Model> {
        self.0.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn micros(&self) -> u64 {
        self.0.now.load(Ordering::Relaxed)
    }

    /// Returns the microsecond of a moment.
    pub(super) fn micros_at(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.0.begin).as_micros()).unwrap_or(u64::MAX)
    }

    pub(super) fn set(&self, micros: u64) {
        self.0.now.store(micros, Ordering::Relaxed);
        self.model().gates.pass(micros);
    }

    pub(super) fn set_wall(&self, shift: i64) {
        self.0.shift.store(shift, Ordering::Relaxed);
    }

    /// Waits at a gate, then runs `act`. Its result is the answer, which may be delayed.
    fn errand<T: Send + 'static>(
        &self,
        what: impl Into<String>,
        act: impl FnOnce(&mut Model) -> T + Send + 'static,
    ) -> BoxFuture<'static, T> {
        let what = what.into();
        let opened = self.model().gates.close(what.clone());
        let tool = self.clone();
        let step = async move {
            let _ = opened.await;
            let (answer, late) = {
                let mut model = tool.model();
                let answer = act(&mut model);
                let late = model.chance(25).then(|| model.gates.close(format!("{LATE}{what}")));
                (answer, late)
            };
            if let Some(late) = late {
                let _ = late.await;
            }
            answer
        };
        step.boxed()
    }

    /// As [`Self::errand`], for the helper, which may be away.
    fn ask<T: Send + 'static>(
        &self,
        what: String,
        act: impl FnOnce(&mut Model) -> Result<T, HelperError> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, HelperError>> {
        self.errand(what, move |model| {
            if model.helper_is_away {
                return Err(HelperError::Silent("helper.sock".into(), "it is away".into()));
            }
            act(model)
        })
    }
}

fn refused<T>(why: &str) -> Result<T, HelperError> {
    Err(HelperError::Refused { code: HelperCode::Other, message: why.into() })
}

impl Clock for Tool {
    fn wall(&self) -> Timestamp {
        let micros = BEGIN + self.micros().cast_signed() + self.0.shift.load(Ordering::Relaxed);
        Timestamp::from_microsecond(micros).unwrap_or(Timestamp::MAX)
    }

    fn steady(&self) -> Steady {
        Steady::from_micros(self.micros().cast_signed())
    }

    fn now(&self) -> Instant {
        self.0.begin + Duration::from_micros(self.micros())
    }
}

impl Outside for Tool {
    fn start(&self, work: BoxFuture<'static, ()>) {
        self.model().gates.start(work);
    }

    fn pause(&self, wait: Duration) -> BoxFuture<'static, ()> {
        let at = self.micros() + u64::try_from(wait.as_micros()).unwrap_or(u64::MAX / 2);
        self.model().gates.timer(at).map(drop).boxed()
    }

    fn block(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, io::Result<()>> {
        let thread = self.errand("a thread", |model| !model.no_threads);
        let step = async move {
            if !thread.await {
                return Err(io::Error::other("no thread can be had"));
            }
            work();
            Ok(())
        };
        step.boxed()
    }
}

impl Model {
    /// Reads one disk, with a reader's treatment of disks that hang.
    fn read(&mut self, devnum: DevNum) -> Found<Facts> {
        if self.hanging.contains(&devnum) {
            return self.host.read_unanswered(devnum, "no answer");
        }
        if self.host.disks.get(&devnum).is_some_and(|disk| disk.readable == Readable::Hangs) {
            self.hanging.insert(devnum);
        }
        self.host.read(devnum)
    }
}

impl Disks for Tool {
    fn read(&self, devnum: DevNum) -> BoxFuture<'static, Found<Facts>> {
        let before = self.model().host.disks.get(&devnum).map(|disk| disk.diskseq);
        self.errand(format!("read {devnum}"), move |model| {
            let mut found = model.read(devnum);
            // The disk was replaced while it was read, so that the first number is the earlier disk's.
            if let (Found::Here(facts), Some(before)) = (&mut found, before)
                && facts.diskseq != before
                && model.rng.bool()
            {
                facts.diskseq = before;
            }
            found
        })
    }

    fn read_all(&self) -> BoxFuture<'static, io::Result<AllDisks>> {
        // Some disks are read early and some late.
        let mut model = self.model();
        let there: Vec<DevNum> = model.host.disks.keys().copied().collect();
        let mut early: AllDisks = Vec::new();
        for devnum in &there {
            if model.rng.bool() {
                let found = model.read(*devnum);
                early.push((*devnum, found));
            }
        }
        drop(model);
        self.errand("read all", move |model| {
            if model.host.unreadable {
                return Err(io::Error::other("no descriptors"));
            }
            let mut all = Vec::new();
            for devnum in there {
                let found = early.iter().find(|(number, _)| *number == devnum).map(|(_, found)| found.clone());
                let found = found.unwrap_or_else(|| model.read(devnum));
                all.push((devnum, found));
            }
            Ok(all)
        })
    }

    fn read_unanswered(&self, devnum: DevNum, why: &str) -> Found<Facts> {
        self.model().host.read_unanswered(devnum, why)
    }

    fn still(&self, devnum: DevNum, diskseq: u64) -> Found<()> {
        self.model().host.still(devnum, diskseq)
    }

    fn resolve(&self, link: &str) -> io::Result<LinkTarget> {
        let model = self.model();
        if model.host.unreadable {
            return Err(io::Error::other("no descriptors"));
        }
        let serial = link.rsplit('-').next().and_then(|serial| serial.parse().ok());
        Ok(serial.map_or(LinkTarget::Missing, |serial| model.host.resolve(serial)))
    }

    fn udevd_is_at_work(&self) -> bool {
        let udevd = &self.model().host.udevd;
        udevd.alive && !udevd.queue.is_empty()
    }
}

impl Truth for Tool {
    fn begin(&self, changes: Vec<Change>) -> Result<oneshot::Receiver<Result<(), StoreError>>, StoreError> {
        self.model().store.begin(changes)
    }

    fn post(&self, volume: VolumeId, news: Vec<News>) {
        self.model().store.posted.entry(volume).or_default().extend(news);
    }

    fn tidy(&self) {}

    fn condition(&self) -> watch::Receiver<Option<StoreError>> {
        self.model().store.condition.subscribe()
    }
}

impl Tool {
    fn claim(&self, what: &str, serial: Serial, wanted: bool) -> BoxFuture<'static, io::Result<()>> {
        self.errand(format!("{what} {serial}"), move |model| {
            model.claims_touched.insert(serial);
            if model.claims_broken {
                return Err(io::Error::other("the folder of claims is broken"));
            }
            model.set_claim(serial, wanted);
            Ok(())
        })
    }
}

impl Model {
    pub(super) fn set_claim(&mut self, serial: Serial, wanted: bool) {
        if wanted {
            self.stolen.remove(&serial);
        }
        let changed = if wanted { self.claims.insert(serial) } else { self.claims.remove(&serial) };
        match (changed, wanted) {
            (true, true) => self.nbd.came(Which::Claims, serial.to_string()),
            (true, false) => self.nbd.went(Which::Claims, serial.to_string()),
            (false, _) => {}
        }
    }

    /// Returns the result of a restoration that began with an empty `touched`.
    pub(super) fn restore(&mut self, wanted: &[VolumeId], under_way: &[VolumeId]) -> io::Result<Restored> {
        if self.claims_broken {
            return Err(io::Error::other("the folder of claims is broken"));
        }
        let wanted: HashSet<Serial> = wanted.iter().map(VolumeId::serial).collect();
        let under_way: HashSet<Serial> = under_way.iter().map(VolumeId::serial).collect();
        let mut restored = Restored::default();
        let left = |serial: &Serial| under_way.contains(serial) || self.claims_touched.contains(serial);
        let removed: Vec<_> = self.claims.iter().copied().filter(|s| !wanted.contains(s) && !left(s)).collect();
        let mut written: Vec<_> = wanted.iter().copied().filter(|s| !self.claims.contains(s) && !left(s)).collect();
        written.sort_unstable();
        for serial in removed {
            self.set_claim(serial, false);
            restored.removed.add(serial.to_string());
        }
        for serial in written {
            self.set_claim(serial, true);
            restored.written.add(serial.to_string());
        }
        Ok(restored)
    }
}

impl Claimant for Tool {
    fn add(&self, volume: VolumeId) -> BoxFuture<'static, io::Result<()>> {
        self.claim("claim", volume.serial(), true)
    }

    fn remove(&self, serial: Serial) -> BoxFuture<'static, io::Result<()>> {
        self.claim("unclaim", serial, false)
    }

    fn restore(&self, wanted: Vec<VolumeId>, under_way: Vec<VolumeId>) -> BoxFuture<'static, io::Result<Restored>> {
        self.model().claims_touched.clear();
        self.errand("restore claims", move |model| model.restore(&wanted, &under_way))
    }
}

impl Helper for Tool {
    fn state(&self) -> Option<Result<(), String>> {
        None
    }

    fn retrigger(&self, serial: Serial) -> BoxFuture<'static, Result<(), HelperError>> {
        self.ask(format!("retrigger {serial}"), move |model| {
            let disks: Vec<_> = model.host.with_serial(serial).map(|(devnum, disk)| (devnum, disk.diskseq)).collect();
            if disks.is_empty() {
                return refused("no such disk");
            }
            for (devnum, diskseq) in disks {
                model.host.uevent("add", devnum, diskseq);
            }
            Ok(())
        })
    }

    fn holders(
        &self,
        devnum: DevNum,
        _node: Option<PathBuf>,
    ) -> BoxFuture<'static, Result<Option<Holders>, HelperError>> {
        self.ask(format!("holders {devnum}"), move |model| {
            let clients = model.nbd.clients.iter().filter(|client| client.devnum == devnum);
            let clients: Vec<String> = clients.map(|client| client.name.clone()).collect();
            Ok((!clients.is_empty()).then_some(Holders { clients, exact: true }))
        })
    }

    fn exclusive(&self, devnum: DevNum, serial: Serial) -> BoxFuture<'static, Result<Exclusive, HelperError>> {
        self.ask(format!("exclusive {devnum} {serial}"), move |model| {
            let disk = model.host.disks.get(&devnum).filter(|disk| disk.serial == serial && disk.group == NBD);
            let Some(disk) = disk else { return refused("no such disk, or not marked") };
            let diskseq = disk.diskseq;
            if disk.mounted || disk.held {
                model.free.remove(&(devnum, diskseq));
                return Ok(Exclusive::Used("somebody has it open exclusively".into()));
            }
            model.free.insert((devnum, diskseq));
            Ok(Exclusive::Free { diskseq })
        })
    }

    fn host_disks(&self) -> BoxFuture<'static, Result<(), HelperError>> {
        self.ask("host disks".into(), |_| Ok(()))
    }

    fn reload(&self) -> BoxFuture<'static, Result<(), HelperError>> {
        self.ask("reload".into(), |model| {
            if !model.nbd.up {
                return refused("no server");
            }
            model.nbd.known.clone_from(&model.nbd.sections);
            Ok(())
        })
    }
}

fn unanswered(silent: bool) -> ProbeError {
    let address = ([127, 0, 0, 1], 10809).into();
    if silent {
        return ProbeError::Slow(address, Duration::from_secs(5));
    }
    ProbeError::Connect(address, io::ErrorKind::ConnectionRefused.into())
}

impl NbdServer for Tool {
    fn greet(&self) -> BoxFuture<'static, Greeted> {
        self.errand("greet", |model| {
            if model.nbd.answers() { Ok(()) } else { Err((unanswered(model.nbd.silent), String::new())) }
        })
    }

    fn ask(&self, export: String) -> BoxFuture<'static, Result<(Served, Goodbye), ProbeError>> {
        self.errand(format!("handshake {export}"), move |model| {
            if !model.nbd.answers() {
                return Err(unanswered(model.nbd.silent));
            }
            let volume = VolumeId::from_export_name(&export);
            let opened = volume.and_then(|volume| Some((volume, model.nbd.opens(&model.host, volume)?.1.clone())));
            let Some((volume, disk)) = opened else {
                return Err(ProbeError::Refused { name: export, why: "no such export".into() });
            };
            let made = model.nbd.exports.get(&volume).map_or(0, |export| export.made);
            let proof = Proof { made, life: model.nbd.life, diskseq: disk.diskseq, size: disk.size };
            model.nbd.proofs.entry(volume).or_default().push(proof);
            let goodbye: Goodbye = Box::new(());
            Ok((Served { size: disk.size, flags: 0 }, goodbye))
        })
    }

    fn connected(&self) -> BoxFuture<'static, Vec<String>> {
        self.errand("connections", |model| model.nbd.clients.iter().map(|client| client.name.clone()).collect())
    }

    fn is_started_for_each(&self) -> bool {
        false
    }
}

impl Backend for Tool {
    fn prepares(&self) -> bool {
        self.model().nbd.is_told
    }

    fn prepare(&self, volume: VolumeId) -> io::Result<bool> {
        self.model().nbd.prepare(volume)
    }

    fn publish(&self, volume: VolumeId, link: &str) -> io::Result<()> {
        let mut model = self.model();
        let there = model.nbd.exports.contains_key(&volume);
        model.nbd.publish(volume, link)?;
        if !there {
            model.check_published(volume, link);
        }
        Ok(())
    }

    fn revoke(&self, volume: VolumeId) -> io::Result<()> {
        let mut model = self.model();
        if model.quiet.contains(&volume) {
            model.violated(format!("{volume} is revoked although nothing has happened to it"));
        }
        model.nbd.revoke(volume)
    }

    fn forget(&self, volume: VolumeId) -> io::Result<()> {
        self.model().nbd.forget(volume)
    }

    fn look(&self, volume: VolumeId) -> io::Result<Option<String>> {
        self.model().nbd.look(volume)
    }

    fn list(&self, known: &BTreeSet<VolumeId>) -> io::Result<Contents> {
        self.model().nbd.list(known)
    }

    fn folders(&self) -> Vec<(Which, &Folder)> {
        Vec::new()
    }

    fn must_be_told(&self) -> bool {
        self.model().nbd.is_told
    }

    fn check(&self) -> Check {
        let refused = self.model().nbd.broken.then(|| "the folder is broken".to_owned());
        Check { refused, remarks: Vec::new() }
    }
}
