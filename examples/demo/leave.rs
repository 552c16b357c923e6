//! Exports that are removed: on request, or because the disk is not certain any more.

use anyhow::Result;
use lab::DiskOptions;

use crate::stage::{MIB, Stage};
use crate::story::SOON;

/// The export is removed; the disk stays for the cloud to detach.
pub(crate) fn withdrawal(stage: &mut Stage) -> Result<()> {
    let mut story = stage.new_volume()?;
    let disk = stage.serve(&mut story, 2 * MIB)?;
    story.read(&stage.api)?;
    story.tell();
    stage.check_equal(&story.volume, &disk);
    let asked = story.doing("DELETE /api/v1/intents/<volume>");
    stage.api.delete(&format!("/api/v1/intents/{}", story.volume.id))?.expect(200)?;
    story.doing("the answer: 200");
    let revoked = story.until("revoked")?;
    story.until("withdrawn")?;
    story.tell();
    stage.check_revoked(&story, ("the request", asked), &revoked);
    let held = || -> Result<String> {
        stage.api.get(&format!("/api/v1/volumes/{}", story.volume.id))?.expect(404)?;
        anyhow::ensure!(disk.is_attached() && disk.node().exists(), "{} is gone", disk.node().display());
        Ok(format!("GET volume is 404, {} is still here", disk.node().display()))
    };
    let result = held();
    stage.checks.add("a withdrawal leaves nothing behind and the disk alone", result);
    check_others_served(stage);
    Ok(())
}

/// The kernel's event is enough to revoke the export; the same volume's disk may come back later.
pub(crate) fn pulled_disk(stage: &mut Stage) -> Result<()> {
    let mut story = stage.new_volume()?;
    let mut disk = stage.serve(&mut story, 2 * MIB)?;
    story.read(&stage.api)?;
    story.tell();
    stage.check_equal(&story.volume, &disk);
    let name = format!("loop{}", disk.number());
    let pulled = story.doing("the disk is pulled");
    disk.detach()?;
    let said = stage.ear.first(&name, pulled, SOON)?;
    story.done(said.at, &format!("the kernel says \"{}\" of {name}", said.action));
    let revoked = story.until("revoked")?;
    story.until("lost")?;
    story.read(&stage.api)?;
    story.tell();
    stage.check_revoked(&story, ("the kernel's event", said.at), &revoked);
    check_others_served(stage);
    story.doing("the disk comes back");
    disk.attach()?;
    story.until("ready")?;
    story.read(&stage.api)?;
    story.tell();
    stage.check_equal(&story.volume, &disk);
    stage.served.push((story.volume, disk));
    Ok(())
}

/// Two disks with one serial cannot be told apart: neither is served, both are named, and the volume recovers when
/// one goes.
pub(crate) fn second_disk_with_the_serial(stage: &mut Stage) -> Result<()> {
    let mut story = stage.new_volume()?;
    let disk = stage.serve(&mut story, 2 * MIB)?;
    story.read(&stage.api)?;
    story.tell();
    stage.check_equal(&story.volume, &disk);
    // Other bytes, so that serving the wrong disk would show.
    let other_bytes = DiskOptions { seed: Some(7), ..DiskOptions::default() };
    let mut twin = stage.lab.disk_with(&story.volume.serial, 2 * MIB, other_bytes)?;
    let attached = story.doing("a second disk with its serial is attached");
    twin.attach()?;
    let name = format!("loop{}", twin.number());
    let said = stage.ear.first(&name, attached, SOON)?;
    story.done(said.at, &format!("the kernel says \"{}\" of {name}", said.action));
    let revoked = story.until("revoked")?;
    let refused = story.until("refused")?;
    story.tell();
    let reason = &refused["reason"];
    let (one, other) = (disk.node(), twin.node());
    let parties = [&*one.to_string_lossy(), &*other.to_string_lossy()];
    stage.check_refusal(&reason["code"], &reason["message"], "DUPLICATE_SERIAL", &parties);
    stage.check_revoked(&story, ("the kernel's first event of it", said.at), &revoked);
    story.doing("the second disk is pulled");
    twin.detach()?;
    story.until("ready")?;
    story.read(&stage.api)?;
    story.tell();
    stage.check_equal(&story.volume, &disk);
    stage.served.push((story.volume, disk));
    Ok(())
}

/// The control: only that export was revoked, and not the server stopped.
fn check_others_served(stage: &mut Stage) {
    let closed = stage.served.iter().find(|(volume, _)| !stage.lab.nbd_connects(&volume.export()));
    let result = match closed {
        None => Ok(format!("{} exports", stage.served.len())),
        Some((volume, _)) => Err(anyhow::anyhow!("{} cannot be opened", volume.export())),
    };
    stage.checks.add("all others stay served meanwhile", result);
}
