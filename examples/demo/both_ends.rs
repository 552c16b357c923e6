//! Both ends: a volume is made, attached, served, detached and deleted, by one request each.

use anyhow::{Context, Result, anyhow, ensure};
use jiff::Timestamp;
use lab::Volume;
use serde_json::{Value, json};

use crate::stage::Stage;
use crate::story::{SOON, Story, millis};

/// Not a whole number of GiB: CloudStack makes no other volumes, so it is rounded up.
const SIZE: u64 = 1_000_000_000;
const GIB: u64 = 1 << 30;

/// An operation that is done, and when that was asked for.
struct Done {
    asked: Timestamp,
    operation: Value,
    /// How many jobs CloudStack had had before.
    jobs: usize,
    /// How many calls.
    calls: usize,
}

/// CloudStack attaches what attachd asks it to, and attachd serves it.
pub(crate) fn made_attached_detached_deleted(stage: &mut Stage) -> Result<()> {
    let (name, zone, offering) = ("demo", stage.cloud.zone(), stage.cloud.offering());
    let create = json!({
        "type": "create", "name": name, "size_bytes": SIZE, "zone_id": zone, "disk_offering_id": offering,
    });
    let created = done(stage, &create)?;
    let id = created.operation["response"]["volume_id"].as_str().context("the operation names its volume")?;
    let volume = Volume::of(id);
    let mut story = Story::begin(&stage.api, volume.clone())?;
    tell(stage, &mut story, "create", &created)?;
    let size = stage.cloud.volume(id).context("CloudStack has it")?.size;
    let result = if size == GIB { Ok(format!("{SIZE} bytes were asked for")) } else { Err(anyhow!("{size} bytes")) };
    stage.checks.add("CloudStack has made a volume of 1 GiB", result);

    let attached = done(stage, &json!({ "type": "attach", "volume_id": id }))?;
    story.until("ready")?;
    tell(stage, &mut story, "attach", &attached)?;
    let file = stage.cloud.file(&volume)?;
    stage.check_bytes(&volume, &file);

    let detached = done(stage, &json!({ "type": "detach", "volume_id": id }))?;
    story.until("withdrawn")?;
    tell(stage, &mut story, "detach", &detached)?;
    let result = stage.absent(&volume).and_then(|()| {
        ensure!(stage.cloud.node(&volume).is_none(), "its disk is here");
        Ok("no export, no disk".to_owned())
    });
    stage.checks.add("after the detach nothing of it is here", result);

    let deleted = done(stage, &json!({ "type": "delete", "volume_id": id }))?;
    tell(stage, &mut story, "delete", &deleted)?;
    let removed = stage.cloud.volume(id).is_some_and(|volume| volume.removed);
    let result = if removed { Ok(id.to_owned()) } else { Err(anyhow!("CloudStack has it still")) };
    stage.checks.add("the volume is deleted", result);
    let changes = ["createVolume", "attachVolume", "detachVolume", "deleteVolume"];
    let asked: Vec<usize> = changes.iter().map(|command| stage.cloud.calls_of(command).len()).collect();
    let result = if asked == [1; 4] { Ok(changes.join(", ")) } else { Err(anyhow!("{}", stage.cloud.told())) };
    stage.checks.add("CloudStack was asked for each change once", result);
    Ok(())
}

/// Asks for an operation and waits until it is done.
fn done(stage: &Stage, request: &Value) -> Result<Done> {
    let (asked, jobs, calls) = (Timestamp::now(), stage.cloud.jobs().len(), stage.cloud.calls().len());
    let begun = stage.api.post("/api/v1/operations", request)?.expect(201)?;
    let id = begun["id"].as_str().context("an operation has an id")?;
    let path = format!("/api/v1/operations/{id}?wait=done&timeout_seconds=60");
    let operation = stage.api.request("GET", &path, None, SOON * 4)?.expect(200)?;
    ensure!(operation["status"] == "completed", "{operation:#}{}", stage.cloud.told());
    Ok(Done { asked, operation, jobs, calls })
}

/// What was done on either side, in the order it happened, and where the time went.
fn tell(stage: &Stage, story: &mut Story, kind: &str, done: &Done) -> Result<()> {
    story.done(done.asked, &format!("POST /api/v1/operations: {kind}"));
    for call in stage.cloud.calls().iter().skip(done.calls).filter(|call| call.is_done()) {
        if !call.command.starts_with("list") && !call.command.starts_with("query") {
            story.done(call.at, &format!("CloudStack is asked: {}", call.command));
        }
    }
    let mut theirs = 0.0;
    for job in stage.cloud.jobs().iter().skip(done.jobs) {
        let completed = job.completed.context("its job has ended")?;
        story.done(completed, &format!("CloudStack: the job of {} has succeeded", job.command));
        theirs += millis(job.created, completed);
    }
    let end: Timestamp = done.operation["completed_at"].as_str().context("it has ended")?.parse()?;
    story.done(end, &format!("the {kind} is completed"));
    story.tell();
    let whole = millis(done.asked, end);
    println!("     {kind}: {whole:.1} ms, CloudStack's own {theirs:.1} ms, everything else {:.1} ms", whole - theirs);
    Ok(())
}
