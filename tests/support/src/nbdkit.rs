//! The lab's nbdkit: the default backend, as its unit runs it.

use crate::child::Proc;
use crate::people;
use crate::watch::{FolderWatch, readable};
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const RUN: &str = "/run/attachd-nbdkit";
const START: Duration = Duration::from_secs(20);

/// Runs nbdkit as user attachd-nbd over the folder of links.
#[derive(Debug)]
pub struct Nbdkit {
    log: PathBuf,
    running: Option<Proc>,
}

impl Nbdkit {
    pub(crate) fn new(log: PathBuf) -> Nbdkit {
        Nbdkit { log, running: None }
    }

    pub(crate) fn start(&mut self, extra: &[&str]) -> Result<()> {
        ensure!(self.running.is_none(), "nbdkit runs already: kill it first");
        // The pid file of a killed nbdkit may still be there (as part of the test). So only a new close-after-write
        // counts: nbdkit writes the file when it listens.
        let watch = FolderWatch::new(Path::new(RUN))?;
        let log = File::options().create(true).append(true).open(&self.log).context("opening nbdkit's log")?;
        let setpriv = people::run_as(people::NBD);
        let mut command = Command::new(&setpriv[0]);
        command.args(&setpriv[1..]).args(["nbdkit", "-f", "-P", &format!("{RUN}/nbdkit.pid")]);
        command.args(["--threads=8", "--filter=limit", "-i", "127.0.0.1", "-p", "10809"]).args(extra);
        command.args(["file", "dir=/run/attachd/exports", "limit=256"]);
        command.current_dir("/").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut nbdkit = Proc::spawn("nbdkit", &mut command)?;
        let deadline = Instant::now() + START;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let happened = readable(&[watch.fd(), nbdkit.exited_fd()], left)?;
            if watch.take().iter().any(|(name, written)| name == "nbdkit.pid" && *written) {
                break;
            }
            if let Some(status) = nbdkit.try_wait()? {
                bail!("nbdkit ended at once ({status}): {}", self.log_text());
            }
            ensure!(happened, "nbdkit does not listen after {START:?}: {}", self.log_text());
        }
        self.running = Some(nbdkit);
        Ok(())
    }

    pub(crate) fn kill(&mut self) -> Result<()> {
        self.running.take().context("nbdkit does not run")?.kill()
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(Proc::pid)
    }

    fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}
