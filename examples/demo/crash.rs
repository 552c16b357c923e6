//! The daemon dies in the middle of its work.

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::stage::{MIB, Stage};
use crate::story::{SOON, time_of};

/// nbdkit is stopped (SIGSTOP), so the handshake that makes a volume ready cannot end. So the kill falls between
/// match and ready, whatever the machine's speed. The second attachd finds the work half done and finishes it.
pub(crate) fn killed_between_match_and_ready(stage: &mut Stage) -> Result<()> {
    let mut story = stage.new_volume()?;
    stage.intend(&mut story, &Value::Null)?;
    let mut disk = stage.lab.disk(&story.volume.serial, 4 * MIB)?;
    story.doing("nbdkit is stopped (SIGSTOP)");
    let stopped = Stopped::new(stage.lab.nbdkit_pid())?;
    story.doing("the disk is attached");
    disk.attach()?;
    story.until("published")?;
    let at_the_kill = story.read(&stage.api)?;
    let killed = story.doing("kill -9 attachd");
    stage.attachd.kill9()?;
    story.doing("nbdkit goes on (SIGCONT)");
    drop(stopped);
    let open = stage.served.iter().filter(|(volume, _)| stage.lab.nbd_connects(&volume.export())).count();
    story.doing("attachd is started again");
    stage.start_again()?;
    story.follow_again(&stage.api)?;
    stage.api.wait_volume(&story.volume.id, "ready", SOON)?;
    story.read(&stage.api)?;
    story.tell();

    let (stood, export) = (&at_the_kill["state"], &at_the_kill["export"]["state"]);
    let result = if stood == "exporting" {
        Ok(format!("state {stood}, export {export}"))
    } else {
        Err(anyhow::anyhow!("the state was {stood}"))
    };
    stage.checks.add("killed between match and ready", result);
    let result = if open == stage.served.len() {
        Ok(format!("{open} exports open to new clients with no attachd running"))
    } else {
        Err(anyhow::anyhow!("only {open} of {} can be opened", stage.served.len()))
    };
    stage.checks.add("exports outlive attachd", result);
    stage.checks.add("the restart finishes the work", Ok("ready".to_owned()));
    stage.check_equal(&story.volume, &disk);
    stage.served.push((story.volume, disk));
    let result = nothing_taken_away_since(stage, killed);
    stage.checks.add("the restart proves each export again and takes none away", result);
    Ok(())
}

/// Checks that every served volume is ready and that its timeline has nothing else since the kill: at each moment a
/// new client was let in.
fn nothing_taken_away_since(stage: &Stage, killed: Timestamp) -> Result<String> {
    for (volume, _) in &stage.served {
        let shown = stage.api.wait_volume(&volume.id, "ready", SOON)?;
        for entry in shown["timeline"].as_array().context("a volume has a timeline")? {
            let bad = matches!(entry["event"].as_str(), Some("revoked" | "lost" | "refused"));
            ensure!(!bad || time_of(entry)? < killed, "{} after the restart: {entry}", volume.id);
        }
    }
    Ok(format!("{} exports", stage.served.len()))
}

/// A stopped process. It continues when this is dropped, even if a scene fails.
struct Stopped(Pid);

impl Stopped {
    fn new(pid: Option<u32>) -> Result<Self> {
        let pid = pid.and_then(|pid| Pid::from_raw(pid.cast_signed())).context("nbdkit does not run")?;
        let stopped = Self(pid);
        kill_process(stopped.0, Signal::STOP)?;
        Ok(stopped)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // This fails only if the process has ended, and then the next check reports it.
        let _ = kill_process(self.0, Signal::CONT);
    }
}
