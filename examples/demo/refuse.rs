//! Disks that come and are refused.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::host::{self, Mount};
use crate::stage::{MIB, Stage};

/// The intent names a size and the disk is smaller, so it is not the volume's disk.
pub(crate) fn disk_too_small(stage: &mut Stage) -> Result<()> {
    let mut story = stage.new_volume()?;
    stage.intend(&mut story, &json!({ "size_bytes": 8 * MIB }))?;
    let mut disk = stage.lab.disk(&story.volume.serial, MIB)?;
    story.doing("the disk is attached, with 1 MiB");
    disk.attach()?;
    let refused = story.until("refused")?;
    story.read(&stage.api)?;
    story.tell();
    let (node, reason) = (disk.node(), &refused["reason"]);
    let parties = [&*node.to_string_lossy(), "1048576", "8388608"];
    stage.check_refusal(&reason["code"], &reason["message"], "SIZE_TOO_SMALL", &parties);
    let result = stage.absent(&story.volume).map(|()| story.volume.export());
    stage.checks.add("a refused disk has no export", result);
    Ok(())
}

/// A disk that the host itself uses is not a customer's, whatever its serial. The answer to the intent says where it
/// is mounted, and nothing is recorded.
pub(crate) fn disk_mounted_by_the_host(stage: &mut Stage) -> Result<()> {
    let mut story = stage.new_volume()?;
    let mut disk = stage.lab.disk(&story.volume.serial, 16 * MIB)?;
    host::make_ext4(disk.file())?;
    story.doing("the disk is attached, with a file system on it");
    stage.lab.attach_settled(&mut disk)?;
    let place = stage.lab.dir().join("srv");
    story.doing(&format!("this host mounts it at {}", place.display()));
    let mount = Mount::new(&disk.node(), &place)?;
    story.doing("POST /api/v1/intents");
    let reply = stage.api.post("/api/v1/intents", &json!({ "volume_id": story.volume.id }))?;
    story.doing(&format!("the answer: {}", reply.status));
    story.tell();
    ensure!(reply.status == 409, "the answer is {}: {}", reply.status, reply.text);
    let node = disk.node();
    let parties = [&*node.to_string_lossy(), &*place.to_string_lossy(), &story.volume.id];
    stage.check_refusal(&reply.json["code"], &reply.json["error"], "IN_USE_BY_HOST", &parties);
    let held = || -> Result<String> {
        let path = format!("/api/v1/intents/{}", story.volume.id);
        stage.api.get(&path)?.expect(404)?;
        stage.absent(&story.volume)?;
        Ok(format!("GET {path} is 404, no export"))
    };
    let result = held();
    stage.checks.add("nothing is kept of a refused intent", result);
    drop(mount);
    Ok(())
}
