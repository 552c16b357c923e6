//! The lab with nbdkit and attachd in it, and what several scenes do.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use lab::{Api, Attachd, AttachdOptions, Disk, Lab, LabCloud, Volume};
use serde_json::{Value, json};
use stand_in::Setup;

use crate::callers::TCP;
use crate::check::{About, Checks};
use crate::host;
use crate::kernel::Ear;
use crate::story::{SOON, Story, millis, time_of};

pub(crate) const MIB: u64 = 1 << 20;

/// The limit of "at once" here: generous for a loaded machine, and far below any timer or poll.
const AT_ONCE_MS: f64 = 1000.0;

/// The configuration: loop devices in place of virtio disks, everything else as shipped.
const CONFIG: &str = "[device]\nschemes = [\"loop\"]\n";

/// How long a job of the stand-in for CloudStack takes.
const JOB_TAKES: Duration = Duration::from_millis(300);

/// Fields are dropped in order: the disks first, the world last.
pub(crate) struct Stage {
    /// The served volumes, which are read back at the end.
    pub(crate) served: Vec<(Volume, Disk)>,
    pub(crate) attachd: Attachd,
    pub(crate) api: Api,
    pub(crate) ear: Ear,
    pub(crate) cloud: LabCloud,
    pub(crate) lab: Lab,
    pub(crate) checks: Checks,
    program: PathBuf,
}

impl Stage {
    /// Builds the world and starts udevd, nbdkit and attachd.
    pub(crate) fn set(program: PathBuf) -> Result<Self> {
        let mut lab = Lab::builder().build().context("building the lab")?;
        let cloud = lab.cloud(Setup { job_takes: JOB_TAKES, ..Setup::default() })?;
        lab.attachd_config(&format!("{CONFIG}{}[api]\ntcp = \"{TCP}\"\n", cloud.config()?))?;
        lab.nbdkit_start()?;
        let ear = Ear::new()?;
        let attachd = lab.attachd_start(&program, &AttachdOptions::default())?;
        println!("attachd: {}; a private world with its own udevd, nbdkit and loop devices", program.display());
        Ok(Self {
            served: Vec::new(),
            api: attachd.api(),
            attachd,
            ear,
            cloud,
            lab,
            checks: Checks::default(),
            program,
        })
    }

    /// Starts attachd again, on the same folders.
    pub(crate) fn start_again(&mut self) -> Result<()> {
        self.attachd = self.lab.attachd_start(&self.program, &AttachdOptions::default())?;
        self.api = self.attachd.api();
        Ok(())
    }

    /// Ends everything. If a check failed, the daemon's last log lines are shown.
    pub(crate) fn strike(self) -> Checks {
        if !self.checks.all_held() {
            let log = self.attachd.stderr_text();
            let lines: Vec<&str> = log.lines().collect();
            println!("\nattachd's last words:\n{}", lines[lines.len().saturating_sub(20)..].join("\n"));
        }
        self.checks
    }

    /// Starts the story of a new volume.
    pub(crate) fn new_volume(&self) -> Result<Story> {
        Story::begin(&self.api, self.lab.volume())
    }

    /// Announces the story's volume and notes that. The answer means that it is durable.
    pub(crate) fn intend(&self, story: &mut Story, more: &Value) -> Result<()> {
        let mut body = json!({ "volume_id": story.volume.id });
        for (key, value) in more.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        let asked = if more.is_null() { String::new() } else { format!(" {more}") };
        story.doing(&format!("POST /api/v1/intents{asked}"));
        self.api.post("/api/v1/intents", &body)?.expect(201)?;
        Ok(())
    }

    /// Announces a volume, attaches its disk and waits until it is served.
    pub(crate) fn serve(&mut self, story: &mut Story, size: u64) -> Result<Disk> {
        self.intend(story, &Value::Null)?;
        let mut disk = self.lab.disk(&story.volume.serial, size)?;
        story.doing("the disk is attached");
        disk.attach()?;
        story.until("ready")?;
        Ok(disk)
    }

    /// Reads the whole export with nbdcopy and compares it with the disk's own bytes.
    pub(crate) fn check_equal(&mut self, volume: &Volume, disk: &Disk) {
        self.check_bytes(volume, disk.file());
    }

    /// The same with the file that the disk is made of.
    pub(crate) fn check_bytes(&mut self, volume: &Volume, file: &Path) {
        let result = self.lab.nbdcopy_equals(&volume.export(), file);
        let result = result.and_then(|()| Ok(std::fs::metadata(file)?.len()));
        let result = result.map(|size| format!("{size} bytes, {}", volume.export()));
        self.checks.add_about(About::Equal, "nbdcopy equals the disk", result);
    }

    /// Checks that a refusal has the code and names all disks and sizes.
    pub(crate) fn check_refusal(&mut self, code: &Value, text: &Value, wanted: &str, parties: &[&str]) {
        let text = text.as_str().unwrap_or_default();
        let missing = parties.iter().find(|party| !text.contains(**party));
        let result = match missing {
            _ if code != wanted => Err(anyhow::anyhow!("the code is {code}: {text}")),
            Some(party) => Err(anyhow::anyhow!("{party} is not named: {text}")),
            None => Ok(format!("{wanted}: {text}")),
        };
        self.checks.add_about(About::Refusal, "refused by name", result);
    }

    /// Checks that the export was removed within [`AT_ONCE_MS`] of its cause, for attachd, the server and a new
    /// client alike.
    pub(crate) fn check_revoked(&mut self, story: &Story, cause: (&str, Timestamp), revoked: &Value) {
        let result = self.revoked_at_once(story, cause, revoked);
        self.checks.add_about(About::Revocation, "the export is revoked at once", result);
    }

    fn revoked_at_once(&self, story: &Story, (cause, since): (&str, Timestamp), revoked: &Value) -> Result<String> {
        self.absent(&story.volume)?;
        let seen = millis(since, Timestamp::now());
        let took = millis(since, time_of(revoked)?);
        ensure!(took < AT_ONCE_MS, "it took {took:.3} ms from {cause}");
        Ok(format!("{took:.3} ms after {cause}; after {seen:.0} ms the server, GET exports and a new client agreed"))
    }

    /// Checks that there is no export of that name: not in the server's list, not in attachd's, not for a new client.
    pub(crate) fn absent(&self, volume: &Volume) -> Result<()> {
        let export = volume.export();
        ensure!(!self.lab.nbd_list()?.contains(&export), "the NBD server still lists {export}");
        let exports = self.api.get("/api/v1/exports")?.expect(200)?;
        ensure!(!exports.to_string().contains(&volume.id), "GET exports still has it: {exports}");
        ensure!(!self.lab.nbd_connects(&export), "a new client can still open {export}");
        Ok(())
    }
}

/// Reads everything that is served once more, and checks that nothing else is served.
pub(crate) fn the_end(stage: &mut Stage) -> Result<()> {
    let served = std::mem::take(&mut stage.served);
    for (volume, disk) in &served {
        stage.check_equal(volume, disk);
    }
    let mut wanted: Vec<String> = served.iter().map(|(volume, _)| volume.export()).collect();
    wanted.sort();
    let mut listed = stage.lab.nbd_list()?;
    listed.sort();
    let result = if listed == wanted {
        Ok(format!("{} exports", listed.len()))
    } else {
        Err(anyhow::anyhow!("listed {listed:?}, wanted {wanted:?}"))
    };
    stage.checks.add("the NBD server lists exactly the served volumes", result);
    for (volume, _) in &served {
        stage.api.wait_volume(&volume.id, "ready", SOON)?;
    }
    host::nbd_port_on_loopback_only(stage);
    stage.served = served;
    Ok(())
}
