//! Today's callers: lines of the predecessor's procedures and scripts, as they stand, by curl and jq over TCP.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::host::run;
use crate::stage::{MIB, Stage};
use crate::story::Story;

/// Where the predecessor listened.
pub(crate) const TCP: &str = "127.0.0.1:8090";

/// No Content-Type: curl sends it as a form.
const ATTACH: &str = r#"curl -s -X POST "http://localhost:8090/api/v1/volumes/$VOLUME_ID/attach" \
     -d '{"volume_id": "'$VOLUME_ID'", "vm_id": "'$VM_ID'"}' | jq -r .id"#;
const STATUS: &str = r#"curl -s "http://localhost:8090/api/v1/operations/$OPERATION" | jq -r '.status // "unknown"'"#;
const DEVICE: &str = r#"curl -s "http://localhost:8090/api/v1/volumes/$VOLUME_ID/device" | jq -r .device_path"#;
const DETACH: &str =
    r#"curl -s -X POST "http://localhost:8090/api/v1/volumes/$VOLUME_ID/detach" | jq -r '.id // empty'"#;
const HEALTH: &str = "curl -s http://localhost:8090/api/v1/health | jq -r .status";

/// A volume is attached, served and detached by the lines that people and scripts type today.
pub(crate) fn lines_as_they_stand(stage: &mut Stage) -> Result<()> {
    let volume = stage.lab.volume();
    stage.cloud.add(&volume, MIB);
    let set = format!("VOLUME_ID={} VM_ID={}", volume.id, stage.cloud.vm_here());
    let mut story = Story::begin(&stage.api, volume.clone())?;
    let attach = typed(&set, ATTACH)?;
    let ended = polled(&attach)?;
    story.until("ready")?;
    story.tell();
    let result = if ended == "completed" { Ok(format!("operation {attach}")) } else { Err(anyhow::anyhow!(ended)) };
    stage.checks.add("the attach is completed", result);
    stage.check_bytes(&volume, &stage.cloud.file(&volume)?);
    let path = typed(&set, DEVICE)?;
    let node = stage.cloud.node(&volume);
    let is_its_link = std::fs::canonicalize(&path).ok() == node;
    let result = if is_its_link { Ok(path) } else { Err(anyhow::anyhow!("{path} is not {node:?}")) };
    stage.checks.add("its device_path is the link of its disk", result);
    typed("", HEALTH)?;

    let ended = polled(&typed(&set, DETACH)?)?;
    let result = stage.absent(&volume).and_then(|()| {
        ensure!(ended == "completed" && stage.cloud.node(&volume).is_none(), "{ended}; its disk is here");
        Ok("no export, no disk".to_owned())
    });
    stage.checks.add("after the detach nothing of it is here", result);
    Ok(())
}

/// Asks for an operation every two seconds, as these callers do, until it has ended.
fn polled(operation: &str) -> Result<String> {
    for _ in 0..30 {
        sleep(Duration::from_secs(2));
        let status = typed(&format!("OPERATION={operation}"), STATUS)?;
        if !matches!(status.as_str(), "pending" | "executing") {
            return Ok(status);
        }
    }
    Ok("has not ended".to_owned())
}

/// Runs lines in a shell, and shows them with what they print.
fn typed(set: &str, lines: &str) -> Result<String> {
    let said = run("bash", &["-c", &format!("{set}\n{lines}")], "")?.trim().to_owned();
    for (number, line) in lines.lines().enumerate() {
        println!("     {} {}", if number == 0 { "$" } else { " " }, line.trim());
    }
    println!("     {said}");
    Ok(said)
}
