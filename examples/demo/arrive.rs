//! Disks that come and are served.

use std::os::unix::fs::MetadataExt;

use anyhow::{Result, anyhow, ensure};
use lab::people::NBD;
use serde_json::Value;

use crate::host;
use crate::stage::{MIB, Stage};

/// The usual order: the volume is announced first, so udev's rules mark the disk when it comes, and it is served
/// without another request.
pub(crate) fn intent_before_its_device(stage: &mut Stage) -> Result<()> {
    let mut story = stage.new_volume()?;
    let disk = stage.serve(&mut story, 4 * MIB)?;
    let shown = story.read(&stage.api)?;
    story.tell();
    let path = shown["device_path"].as_str().unwrap_or_default();
    let result = if path == story.volume.link().to_string_lossy() {
        Ok(format!("{path} -> {}", shown["device_node"].as_str().unwrap_or_default()))
    } else {
        Err(anyhow!("the path on record is {path}"))
    };
    stage.checks.add("the path on record is the by-id link", result);
    host::check_marked(stage, &disk);
    stage.check_equal(&story.volume, &disk);
    stage.served.push((story.volume, disk));
    Ok(())
}

/// The disk came before its claim, so udev left it to the group of all disks, and the NBD server could not open it.
/// Marking it takes one `add` trigger by root. attachd has no such privilege; here the demo does it in its place.
pub(crate) fn intent_after_its_device(stage: &mut Stage) -> Result<()> {
    let mut story = stage.new_volume()?;
    let mut disk = stage.lab.disk(&story.volume.serial, 4 * MIB)?;
    story.doing("the disk is attached");
    stage.lab.attach_settled(&mut disk)?;
    let group = std::fs::metadata(disk.node())?.gid();
    stage.intend(&mut story, &Value::Null)?;
    let refused = story.until("refused")?;
    story.doing("root marks this one disk: udevadm trigger --action=add (in place of the future helper)");
    stage.lab.retrigger(&disk)?;
    story.until("ready")?;
    story.read(&stage.api)?;
    story.tell();
    let result = if group == NBD.id { Err(anyhow!("its group is {group}")) } else { Ok(format!("group {group}")) };
    stage.checks.add("before its intent the disk was not the NBD server's", result);
    let node = disk.node();
    let reason = &refused["reason"];
    stage.check_refusal(&reason["code"], &reason["message"], "NOT_MARKED", &[&node.to_string_lossy()]);
    host::check_marked(stage, &disk);
    stage.check_equal(&story.volume, &disk);
    stage.served.push((story.volume, disk));
    Ok(())
}

/// A customer's disk usually has a partition table. The disk is served whole; its partitions are ignored.
pub(crate) fn disk_with_a_partition_table(stage: &mut Stage) -> Result<()> {
    let mut story = stage.new_volume()?;
    let mut disk = stage.lab.disk(&story.volume.serial, 16 * MIB)?;
    host::write_partition_table(disk.file())?;
    stage.intend(&mut story, &Value::Null)?;
    story.doing("the disk is attached: GPT, two partitions");
    disk.attach()?;
    story.until("ready")?;
    story.doing("the kernel announces partition 1");
    let partition = disk.add_partition(1, MIB, 4 * MIB)?;
    stage.lab.udevd().settle()?;
    stage.api.post("/api/v1/resync", &serde_json::json!({}))?.expect(200)?;
    let shown = story.read(&stage.api)?;
    story.tell();
    let held = || -> Result<String> {
        ensure!(shown["state"] == "ready" && shown["size_bytes"] == 16 * MIB, "not served whole: {shown}");
        let of_it = stage.lab.nbd_list()?.into_iter().filter(|name| name.contains(&story.volume.id)).count();
        ensure!(of_it == 1, "{of_it} exports of one disk");
        let group = std::fs::metadata(&partition)?.gid();
        ensure!(group != NBD.id, "{} was given to the NBD server", partition.display());
        Ok(format!("one export of {} bytes; {} is not the NBD server's", 16 * MIB, partition.display()))
    };
    let result = held();
    stage.checks.add("the disk is served whole, its partition not at all", result);
    stage.check_equal(&story.volume, &disk);
    stage.served.push((story.volume, disk));
    Ok(())
}
