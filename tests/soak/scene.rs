//! The lab and its contents, controlled by the one thread that acts.

use std::collections::BTreeMap;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lab::{Attachd, AttachdOptions, Disk, DiskOptions, Helper, Lab, Volume, people};

use crate::common::{CONFIG, bin};
use crate::faults::Fault;
use crate::ledger::{Known, Ledger};

/// The store is on a small file system, so that it can become full.
pub(crate) const STORE: &str = "/run/soak";

/// The number of the daemon's log lines that are shown with a failure.
const SAID: usize = 60;

/// What the answers say about a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// It is wanted, and that was answered with success.
    Wanted,
    /// It is not wanted.
    Unwanted,
    /// The answer was lost, or leaves it open.
    Unknown,
    /// Withdrawn by force while a client was connected: it goes when the client goes.
    Leaving,
}

/// A volume, its disk, and what is expected of it.
pub(crate) struct Held {
    pub(crate) known: Arc<Known>,
    pub(crate) disk: Disk,
    pub(crate) wish: Wish,
    /// The number of actions that revoke its export.
    pub(crate) revocations: usize,
}

pub(crate) struct Scene {
    // Dropped in this order: faults first, the lab last.
    pub(crate) faults: Vec<(Instant, Fault)>,
    pub(crate) held: BTreeMap<String, Held>,
    pub(crate) attachd: Attachd,
    pub(crate) helper: Helper,
    pub(crate) lab: Lab,
    pub(crate) ledger: Ledger,
    /// Memory in KiB and descriptors of the last daemon, at each rest.
    pub(crate) levels: Vec<(u64, usize)>,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let mut lab = Lab::new();
        std::fs::create_dir(STORE).unwrap();
        let owner = format!("size=32m,mode=0755,uid={0},gid={0}", people::ATTACHD.id);
        run("mount", &["-t", "tmpfs", "-o", &owner, "tmpfs", STORE]);
        lab.attachd_config(&format!("{CONFIG}[store]\npath = \"{STORE}/attachd.db\"\n")).unwrap();
        lab.nbdkit_start().unwrap();
        lab.not_restarted("the plot restarts the daemon all the time, and the judges look at each life");
        let helper = Helper::start(&bin().with_file_name("attachd-helper")).unwrap();
        let attachd = lab.attachd_start(bin(), &AttachdOptions::default()).unwrap();
        let (faults, held, levels) = (Vec::new(), BTreeMap::new(), Vec::new());
        Self { faults, held, attachd, helper, lab, ledger: Ledger::new(), levels }
    }

    /// Makes a new volume and its disk, which is not attached yet.
    pub(crate) fn add(&mut self, random: &mut fastrand::Rng) -> String {
        let volume = uuid(random);
        let size = random.u64(1..64) << 16;
        let disk = self.lab.disk(&volume.serial, size).unwrap();
        let known = Known {
            volume: volume.clone(),
            size,
            file: disk.file().to_owned(),
            turns: crate::ledger::Turns::default(),
            gate: std::sync::RwLock::default(),
        };
        let known = Arc::new(known);
        self.ledger.add(known.clone());
        self.held.insert(volume.id.clone(), Held { known, disk, wish: Wish::Unwanted, revocations: 0 });
        volume.id
    }

    /// Makes a second disk with the serial and other bytes.
    pub(crate) fn twin(&self, volume: &Volume, size: u64) -> Disk {
        self.lab.disk_with(&volume.serial, size, DiskOptions { seed: Some(1), ..DiskOptions::default() }).unwrap()
    }

    /// Starts the daemon again, after the faults that would prevent it have ended.
    pub(crate) fn start(&mut self) {
        match self.lab.attachd_start(bin(), &AttachdOptions::default()) {
            Ok(attachd) => self.attachd = attachd,
            Err(error) => self.ledger.fail(format_args!("the daemon does not start: {error:#}")),
        }
    }

    /// Checks that the daemon has not ended by itself.
    pub(crate) fn still_lives(&mut self) {
        if let Ok(status) = self.attachd.wait_exit(Duration::ZERO) {
            self.ledger.fail(format_args!("the daemon has ended by itself: {status}"));
        }
    }

    pub(crate) fn verdict(mut self, seed: u64) -> ExitCode {
        self.faults.clear();
        let said = self.attachd.stderr_text();
        if said.contains("panicked") {
            self.ledger.fail("the daemon has panicked: see what it said");
        }
        self.memory();
        if let Some(never) = ["ready and served", "not ready and not served", "copies", "kill -9"]
            .into_iter()
            .find(|what| self.ledger.counted(what) == 0)
        {
            self.ledger.fail(format_args!("too short to mean anything: never counted: {never}"));
        }
        let Some((why, history)) = self.ledger.failure() else {
            println!("soak: no wrong byte, nothing lost, every `ready` was true when asked (seed {seed})");
            return ExitCode::SUCCESS;
        };
        println!("\nsoak FAILED (seed {seed}): {why}\n\nwhat was done last:");
        print(history.iter());
        println!("\nwhat attachd said last:");
        let lines: Vec<&str> = said.lines().collect();
        print(lines[lines.len().saturating_sub(SAID)..].iter());
        let concerned = self.held.keys().find(|id| why.contains(&**id));
        if let Some(id) = concerned {
            println!("\nwhat attachd said of {id}:");
            let of_it: Vec<&&str> = lines.iter().filter(|line| line.contains(&**id)).collect();
            print(of_it[of_it.len().saturating_sub(SAID)..].iter());
        }
        ExitCode::FAILURE
    }

    /// Compares the last daemon's memory and descriptors, from its first rest to its last.
    fn memory(&self) {
        /// The growth in KiB that is allowed: SQLite's pages and the allocator's.
        const MORE: u64 = 8 << 10;
        /// The number of rests until a daemon has done everything once.
        const WARM: usize = 4;
        let (Some((before, open_before)), Some((after, open))) = (self.levels.get(WARM), self.levels.last()) else {
            return println!("too short to say anything of memory");
        };
        let rests = self.levels.len() - WARM;
        println!("memory {before} -> {after} KiB, descriptors {open_before} -> {open}, in {rests} rests");
        if *after > before + MORE || *open > open_before + 16 {
            self.ledger.fail("memory or descriptors have grown");
        }
    }
}

fn print(lines: impl Iterator<Item = impl std::fmt::Display>) {
    for line in lines {
        println!("  {line}");
    }
}

/// Makes a volume from this seed. No other process has it, because it begins with this process's id.
fn uuid(random: &mut fastrand::Rng) -> Volume {
    let (a, b) = (random.u64(..), random.u64(..));
    let hex = format!("{:08x}{a:016x}{b:08x}", std::process::id());
    let part = |range: std::ops::Range<usize>| &hex[range];
    Volume::of(&[part(0..8), part(8..12), part(12..16), part(16..20), part(20..32)].join("-"))
}

pub(crate) fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}
