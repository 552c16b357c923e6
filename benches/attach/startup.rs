//! Start-up with many mappings on record and many disks present.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use attachd::device::DevNum;
use attachd::device::evidence::{self, Evidence, Ground};
use attachd::device::scheme;
use attachd::device::sysfs::Sysfs;
use attachd::device::table::Device;
use attachd::identity::VolumeId;
use jiff::Timestamp;
use lab::{Attachd, Disk, Lab, people};

use crate::Plan;
use crate::report::{Goal, Samples, Section, Table, ms};
use crate::setup::{self, STORE, absent_evidence, absent_volume, wait_count};

pub(crate) fn bench(plan: Plan) -> Result<Section> {
    let (mappings, present) = (plan.count(10_000, 1000), plan.count(200, 20));
    let rounds = plan.count(10, 2);
    let lab = setup::lab()?;
    println!("attaching {present} disks, recording {mappings} mappings");
    let mut disks = Vec::new();
    let mut volumes = Vec::new();
    for _ in 0..present {
        let volume = lab.volume();
        lab.claim(&volume.serial)?;
        let mut disk = setup::disk(&lab, &volume.serial, 1 << 20)?;
        lab.attach_settled(&mut disk)?;
        let id: VolumeId = volume.id.parse()?;
        volumes.push((id, Some(earlier(prove(&disk)?))));
        disks.push(disk);
    }
    for n in 0..mappings - present {
        let volume = absent_volume(n)?;
        volumes.push((volume, Some(absent_evidence(volume, n)?)));
    }
    setup::seed(&lab, &volumes)?;
    let template = lab.dir().join("template.db");
    fs::copy(STORE, &template)?;

    let (mut reboot, mut restart) = (Times::default(), Times::default());
    for round in 1..=rounds {
        // After a reboot nothing is exported, and no recorded device number or sequence number is valid.
        setup::unpublish_all()?;
        for rest in ["-wal", "-shm"] {
            let _ = fs::remove_file(format!("{STORE}{rest}"));
        }
        fs::copy(&template, STORE)?;
        setup::give(Path::new(STORE))?;
        reboot.start(&lab, present, mappings)?.terminate()?;
        // A restart: everything is on record and exported, and is proven again all the same.
        restart.start(&lab, present, mappings)?.terminate()?;
        println!("round {round} of {rounds}: reboot {}, restart {}", reboot.last(), restart.last());
    }

    let mut table = Table::of_samples("", &[]);
    table.samples("reboot: until health answers", &reboot.health, []);
    table.samples(&format!("reboot: until all {present} are ready"), &reboot.ready, []);
    table.samples("restart: until health answers", &restart.health, []);
    table.samples(&format!("restart: until all {present} are ready"), &restart.ready, []);
    let goal = |what: &str, samples: &Samples| Goal {
        wanted: format!("{what} in less than 1 s (max of {rounds})"),
        measured: format!("{} ms", ms(samples.max())),
        met: samples.max() < 1000.0,
    };
    let goals = vec![
        goal("health answers after a reboot", &reboot.health),
        goal("all present disks ready after a reboot", &reboot.ready),
        goal("health answers after a restart", &restart.health),
        goal("all present disks ready after a restart", &restart.ready),
    ];
    let about = format!(
        "{mappings} mappings on record, {present} of their disks present, from the start of the process (fork and exec \
         included). Reboot: the folder of exports is empty and every mapping on record is of an earlier boot, so each \
         of the {present} is proven, recorded, published and shaken hands with, and {} are found lost. Restart: \
         everything is on record and exported, and each export is proven again. Ready is when health, asked every \
         {} ms, counts all of them.",
        mappings - present,
        ASK_AGAIN.as_millis()
    );
    let raw = vec![
        ("reboot health".to_owned(), reboot.health),
        ("reboot ready".to_owned(), reboot.ready),
        ("restart health".to_owned(), restart.health),
        ("restart ready".to_owned(), restart.ready),
    ];
    Ok(Section { title: "Start-up", about, tables: vec![table], goals, raw })
}

/// The interval of the check whether all are ready.
const ASK_AGAIN: Duration = Duration::from_millis(5);

#[derive(Default)]
struct Times {
    health: Samples,
    ready: Samples,
}

impl Times {
    fn start(&mut self, lab: &Lab, present: usize, mappings: usize) -> Result<Attachd> {
        let begun = Instant::now();
        let attachd = setup::start(lab)?;
        self.health.add(begun.elapsed());
        let api = attachd.api();
        // A volume that is found unchanged has been ready all the time: only the count shows when it was proven
        // again.
        while setup::health(&api)?["volumes"]["ready"].as_u64() != Some(u64::try_from(present)?) {
            ensure!(begun.elapsed() < setup::LIMIT, "not all are ready: {}", attachd.stderr_text());
            std::thread::sleep(ASK_AGAIN);
        }
        self.ready.add(begun.elapsed());
        wait_count(&api, "lost", mappings - present)?;
        Ok(attachd)
    }

    fn last(&self) -> String {
        let [health, ready] = [&self.health, &self.ready].map(|samples| ms(samples.p50()));
        format!("p50 health {health}, ready {ready} ms")
    }
}

/// Returns the evidence that the daemon would keep for a present disk.
fn prove(disk: &Disk) -> Result<Evidence> {
    let sysfs = Sysfs::new(scheme::by_name("loop").into_iter().collect(), "/etc/attachd/host-disks".into());
    let ground = Ground { boot_id: sysfs.boot_id()?, nbd_gid: people::NBD.id };
    let (major, minor) = disk.devnum();
    let facts = sysfs.read(DevNum { major, minor }).here().context("the disk is present")?;
    let device = Device { facts, reading: 1, settled: true, heard_at: None };
    let evidence =
        evidence::check(&ground, &[&device], None, Timestamp::now()).context("the disk shows a serial")??;
    ensure!(evidence.serial.as_str() == disk.serial(), "{evidence:?}");
    Ok(evidence)
}

/// Returns the same evidence as of an earlier boot.
fn earlier(evidence: Evidence) -> Evidence {
    Evidence { boot_id: "an earlier boot".into(), ..evidence }
}
