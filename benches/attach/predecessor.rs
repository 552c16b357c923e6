//! An attach in the way of attachd's predecessor: CloudStack is called, its job is asked for every 2 s, then the by-id link is
//! looked for every 100 ms, then the export is written.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use attachd::cloud::{Client, Cloud as _, CloudSettings, JobStatus, SecretFile, VmId};
use attachd::identity::VolumeId;
use lab::{LabCloud, Volume};
use tokio::runtime::Runtime;
use tokio::time::sleep;

use crate::setup::{self, EXPORTS, LIMIT};

/// The interval at which the job is asked for.
pub(crate) const JOB_POLL: Duration = Duration::from_secs(2);

/// The interval at which the link is looked for.
const LINK_POLL: Duration = Duration::from_millis(100);

/// The client. It calls CloudStack with attachd's own functions, so that a call costs both the same. It writes no tables and
/// signals no NBD server, as the predecessor had to: that is in its favour.
pub(crate) struct Predecessor {
    runtime: Runtime,
    client: Client,
    vm: VmId,
}

/// When it came how far, on the clock of the daemon's timeline.
pub(crate) struct Reached {
    pub(crate) asked: i128,
    /// It has seen that the job is done.
    pub(crate) job_seen: i128,
    /// The volume is exported.
    pub(crate) done: i128,
}

impl Predecessor {
    /// `cloud` has written the files of the keys.
    pub(crate) fn new(cloud: &LabCloud) -> Result<Self> {
        let mut settings = CloudSettings::new(cloud.url().parse()?);
        let [key, secret] = LabCloud::KEY_FILES.map(|path| SecretFile::Named(PathBuf::from(path)));
        (settings.key_file, settings.secret_file) = (key, secret);
        Ok(Self { runtime: setup::runtime()?, client: Client::new(settings), vm: cloud.vm_here().parse()? })
    }

    /// Attaches a volume and exports it.
    pub(crate) fn attach(&self, volume: &Volume) -> Result<Reached> {
        let (id, link) = (volume.id.parse()?, volume.link());
        let (asked, begun) = (setup::now_ns(), Instant::now());
        let job_seen = self.runtime.block_on(self.call_and_poll(id))?;
        while !fs::exists(&link)? {
            ensure!(begun.elapsed() < LIMIT, "no {}", link.display());
            std::thread::sleep(LINK_POLL);
        }
        symlink(&link, Path::new(EXPORTS).join(volume.export()))?;
        Ok(Reached { asked, job_seen, done: setup::now_ns() })
    }

    async fn call_and_poll(&self, id: VolumeId) -> Result<i128> {
        let job = Volume::random().id.parse().context("an id of a job")?;
        let job = self.client.attach(job, id, &self.vm, None).await?.job;
        loop {
            match self.client.job(job).await? {
                Some(JobStatus::Succeeded { .. }) => return Ok(setup::now_ns()),
                Some(JobStatus::Running) => sleep(JOB_POLL).await,
                other => bail!("the job has ended as {other:?}"),
            }
        }
    }
}
