//! Tests of the lab itself: what the system tests rely on is true.

use anyhow::Result;
use lab::{Disk, DiskOptions, Heard, Lab, people};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const SIZE: u64 = 4 << 20;
const SOON: Duration = Duration::from_secs(20);
const DISK_GROUP: u32 = 6;

fn group_and_mode(disk: &Disk) -> (u32, u32) {
    let meta = fs::metadata(disk.node()).expect("the node exists");
    (meta.gid(), meta.permissions().mode() & 0o777)
}

fn is(heard: &Heard, action: &str, disk: &Disk) -> bool {
    heard.get("ACTION") == action && Path::new(heard.get("DEVNAME")) == disk.node()
}

#[test]
fn a_disk_gets_its_link_and_has_its_data() -> Result<()> {
    let lab = Lab::new();
    let mut disk = lab.disk(&lab.volume().serial, SIZE)?;
    let heard = lab.attach_settled(&mut disk)?;
    assert!(heard.get("DEVLINKS").split(' ').any(|l| Path::new(l) == disk.link()), "{heard:?}");
    assert_eq!(fs::canonicalize(disk.link())?, disk.node());
    assert!(fs::read(disk.link())? == fs::read(disk.file())?, "the bytes differ");
    assert_eq!(group_and_mode(&disk), (DISK_GROUP, 0o660));
    Ok(())
}

#[test]
fn detach_gives_remove_and_takes_link_and_node() -> Result<()> {
    let lab = Lab::new();
    let mut disk = lab.disk(&lab.volume().serial, SIZE)?;
    lab.attach_settled(&mut disk)?;
    let (node, sysfs) = (disk.node(), disk.sysfs());
    lab.detach_settled(&mut disk)?;
    assert!(!node.exists() && !sysfs.exists() && fs::symlink_metadata(disk.link()).is_err());
    Ok(())
}

#[test]
fn a_number_is_used_again_by_another_disk() -> Result<()> {
    let lab = Lab::new();
    let (mut one, mut two) = (lab.disk(&lab.volume().serial, SIZE)?, lab.disk(&lab.volume().serial, SIZE)?);
    lab.attach_settled(&mut one)?;
    let (number, diskseq) = (one.number(), one.diskseq()?);
    lab.detach_settled(&mut one)?;
    let ear = lab.bare_listener()?;
    two.attach_as(number)?;
    ear.wait_for(SOON, |h| is(h, "change", &two) && h.get("ID_SERIAL") == two.serial())?;
    assert!(two.diskseq()? > diskseq);
    assert_eq!(fs::canonicalize(two.link())?, two.node());

    two.detach_keep()?;
    ear.wait_for(SOON, |h| is(h, "change", &two) && h.get("ID_SERIAL").is_empty())?;
    lab.attach_settled(&mut two)?;
    assert_eq!(two.number(), number);
    Ok(())
}

#[test]
fn a_swap_while_udevd_is_dead_leaves_a_stale_link() -> Result<()> {
    let mut lab = Lab::new();
    let (mut one, mut two) = (lab.disk(&lab.volume().serial, SIZE)?, lab.disk(&lab.volume().serial, SIZE)?);
    lab.attach_settled(&mut one)?;
    let number = one.number();
    lab.udevd().stop()?;
    one.detach()?;
    two.attach_as(number)?;
    lab.udevd().start()?;
    lab.udevd().settle()?;
    assert_eq!(fs::canonicalize(one.link())?, two.node(), "the link of the old disk leads to the new one");
    lab.retrigger(&two)?;
    assert!(fs::symlink_metadata(one.link()).is_err());
    assert_eq!(fs::canonicalize(two.link())?, two.node());
    Ok(())
}

#[test]
fn a_paused_udevd_catches_up() -> Result<()> {
    let mut lab = Lab::new();
    let mut disk = lab.disk(&lab.volume().serial, SIZE)?;
    lab.udevd().pause()?;
    let ear = lab.bare_listener()?;
    disk.attach()?;
    assert!(!disk.link().exists());
    lab.udevd().resume()?;
    ear.wait_for(SOON, |h| h.get("ID_SERIAL") == disk.serial())?;
    assert!(disk.link().exists());
    Ok(())
}

#[test]
fn claims_decide_the_group() -> Result<()> {
    let lab = Lab::new();
    let mut disk = lab.disk(&lab.volume().serial, SIZE)?;
    lab.claim(disk.serial())?;
    let heard = lab.attach_settled(&mut disk)?;
    assert_eq!(group_and_mode(&disk), (people::NBD.id, 0o660));
    assert_eq!(heard.get("UDISKS_IGNORE"), "1");
    assert!(disk.link().exists());

    lab.unclaim(disk.serial())?;
    lab.retrigger(&disk)?;
    assert_eq!(group_and_mode(&disk), (DISK_GROUP, 0o660));

    lab.claim(disk.serial())?;
    lab.retrigger(&disk)?;
    assert_eq!(group_and_mode(&disk), (people::NBD.id, 0o660));

    lab.host_disk(disk.serial())?;
    lab.retrigger(&disk)?;
    assert_eq!(group_and_mode(&disk), (DISK_GROUP, 0o660), "a host disk is never claimed");
    Ok(())
}

#[test]
fn an_unclaimed_disk_is_probed_and_a_claimed_one_is_not() -> Result<()> {
    let lab = Lab::new();
    for claimed in [false, true] {
        let mut disk = lab.disk_with(&lab.volume().serial, SIZE, DiskOptions { blank: true, ..Default::default() })?;
        let made = Command::new("mke2fs").args(["-q", "-F", &disk.file().to_string_lossy()]).status()?;
        assert!(made.success());
        if claimed {
            lab.claim(disk.serial())?;
        }
        let heard = lab.attach_settled(&mut disk)?;
        assert_eq!(heard.get("ID_FS_TYPE"), if claimed { "" } else { "ext2" });
    }
    Ok(())
}

/// Counts the udev events of an open-for-writing and close, up to a trigger's `add` that is certainly later.
fn events_of_a_write(lab: &mut Lab, disk: &Disk) -> Result<usize> {
    lab.udevd().settle()?;
    let ear = lab.bare_listener()?;
    drop(fs::File::options().write(true).open(disk.node())?);
    // udevd reads its inotify queue in the same loop that answers a ping, so its events for this write are queued
    // before the answer.
    lab.udevd().ping()?;
    lab.udevd().settle()?;
    lab.retrigger(disk)?;
    Ok(ear.drain()?.iter().filter(|h| is(h, "change", disk)).count())
}

#[test]
fn writing_to_a_claimed_disk_makes_no_event() -> Result<()> {
    let mut lab = Lab::new();
    let mut claimed = lab.disk(&lab.volume().serial, SIZE)?;
    let mut other = lab.disk(&lab.volume().serial, SIZE)?;
    lab.claim(claimed.serial())?;
    lab.attach_settled(&mut claimed)?;
    lab.attach_settled(&mut other)?;
    assert!(events_of_a_write(&mut lab, &other)? > 0, "the check itself sees events");
    assert_eq!(events_of_a_write(&mut lab, &claimed)?, 0);
    Ok(())
}

#[test]
fn partitions_of_a_claimed_disk_keep_their_group() -> Result<()> {
    let lab = Lab::new();
    let mut disk = lab.disk(&lab.volume().serial, SIZE)?;
    lab.claim(disk.serial())?;
    let ear = lab.bare_listener()?;
    lab.attach_settled(&mut disk)?;
    let partition = disk.add_partition(1, 1 << 20, 1 << 20)?;
    ear.wait_for(SOON, |h| Path::new(h.get("DEVNAME")) == partition && h.get("SYNTH_UUID") == "0")?;
    assert_eq!(fs::metadata(&partition)?.gid(), DISK_GROUP);
    assert_eq!(group_and_mode(&disk), (people::NBD.id, 0o660));
    assert_eq!(fs::canonicalize(format!("{}-part1", disk.link().display()))?, partition);
    Ok(())
}

#[test]
fn nbdkit_serves_a_claimed_disk_and_cannot_open_another() -> Result<()> {
    let mut lab = Lab::new();
    let (yes, no) = (lab.volume(), lab.volume());
    let mut claimed = lab.disk(&yes.serial, SIZE)?;
    let mut other = lab.disk(&no.serial, SIZE)?;
    lab.claim(&yes.serial)?;
    lab.attach_settled(&mut claimed)?;
    lab.attach_settled(&mut other)?;
    lab.nbdkit_start()?;
    lab.publish(&yes.export(), &claimed.link())?;
    lab.publish(&no.export(), &other.link())?;
    assert!(lab.nbd_connects(&yes.export()));
    assert!(!lab.nbd_connects(&no.export()));
    assert!(lab.nbd_list()?.contains(&yes.export()));
    lab.nbdcopy_equals(&yes.export(), claimed.file())?;
    assert!(lab.nbdcopy_equals(&yes.export(), other.file()).is_err(), "the comparison can fail");

    let mut client = lab.nbd_client(&yes.export())?;
    assert_eq!(client.size(), SIZE);
    assert!(client.read(4096, 4096)? == fs::read(claimed.file())?[4096..8192]);
    drop(client);

    lab.nbdkit_kill()?;
    assert!(!lab.nbd_connects(&yes.export()));
    lab.nbdkit_start()?;
    assert!(lab.nbd_connects(&yes.export()));
    Ok(())
}

#[test]
fn one_serial_twice() -> Result<()> {
    let lab = Lab::new();
    let serial = lab.volume().serial;
    let mut one = lab.disk_with(&serial, SIZE, DiskOptions { seed: Some(1), ..Default::default() })?;
    let mut two = lab.disk_with(&serial, SIZE, DiskOptions { seed: Some(2), ..Default::default() })?;
    lab.attach_settled(&mut one)?;
    lab.attach_settled(&mut two)?;
    assert_ne!(one.node(), two.node());
    assert!(fs::read(one.file())? != fs::read(two.file())?);
    Ok(())
}

#[test]
fn a_resize_is_announced() -> Result<()> {
    let lab = Lab::new();
    let mut disk = lab.disk(&lab.volume().serial, SIZE)?;
    lab.attach_settled(&mut disk)?;
    let ear = lab.bare_listener()?;
    disk.resize(2 * SIZE)?;
    ear.wait_for(SOON, |h| is(h, "change", &disk) && h.get("RESIZE") == "1")?;
    assert_eq!(fs::read_to_string(disk.sysfs().join("size"))?.trim(), (2 * SIZE / 512).to_string());
    Ok(())
}

#[test]
fn a_forged_event_is_heard_also_by_a_filtering_listener() -> Result<()> {
    let lab = Lab::new();
    let ear = lab.bare_listener()?;
    // udevadm monitor filters in the kernel by the hashes and the tag bits of the message.
    let mut monitor = Command::new("udevadm")
        .args(["monitor", "--udev", "--property", "--subsystem-match=block/disk", "--tag-match=lab"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(monitor.stdout.take().expect("piped")).lines();
    // It prints its greeting when it listens.
    assert!(lines.any(|l| l.is_ok_and(|l| l.starts_with("UDEV - the event"))));
    let event = [
        ("ACTION", "add"),
        ("DEVPATH", "/devices/forged/block/vdz"),
        ("SUBSYSTEM", "block"),
        ("DEVTYPE", "disk"),
        ("DEVNAME", "/dev/vdz"),
        ("SEQNUM", "4242"),
        ("ID_SERIAL", "0123456789abcdef0123"),
        ("TAGS", ":lab:"),
    ];
    let forger = lab.forge(&event)?;
    let heard = ear.wait_for(SOON, |h| h.get("DEVNAME") == "/dev/vdz")?;
    assert_eq!(heard.get("ID_SERIAL"), "0123456789abcdef0123");
    assert!(lines.any(|l| l.is_ok_and(|l| l == "ID_SERIAL=0123456789abcdef0123")));
    monitor.kill()?;
    monitor.wait()?;

    let message = lab::wire::encode(&event);
    let start = Instant::now();
    for _ in 0..10_000 {
        forger.send_raw(&message)?;
    }
    eprintln!("10,000 forged events in {:?}", start.elapsed());
    assert_eq!(ear.drain()?.iter().filter(|h| h.get("SEQNUM") == "4242").count(), 10_000);
    Ok(())
}

#[test]
fn rmem_max_comes_back() -> Result<()> {
    let read = || fs::read_to_string("/proc/sys/net/core/rmem_max");
    let _lab = Lab::new();
    {
        let _small = lab::RmemMax::set(212_992)?;
        assert_eq!(read()?.trim(), "212992");
    }
    let _other = lab::RmemMax::set(300_000)?;
    assert_eq!(read()?.trim(), "300000");
    Ok(())
}

#[test]
fn the_box_is_private() -> Result<()> {
    let _lab = Lab::new();
    assert!(!Path::new("/dev/vda").exists() && !Path::new("/dev/loop0").exists());
    assert!(Path::new("/etc/attachd/host-disks").is_dir());
    assert_eq!(fs::metadata("/run/attachd/exports")?.uid(), people::ATTACHD.id);
    assert_eq!(fs::metadata("/run/attachd-nbdkit")?.uid(), people::NBD.id);
    assert_eq!(fs::metadata("/var/lib/attachd")?.gid(), people::ATTACHD.id);
    let id = Command::new("setpriv").args(&people::run_as(people::ATTACHD)[1..]).arg("id").output()?;
    let id = String::from_utf8_lossy(&id.stdout).trim().to_owned();
    assert_eq!(id, "uid=61801(attachd) gid=61801(attachd) groups=61801(attachd)");
    Ok(())
}

/// A second lab in another process, busy until it is told to stop. The process runs this test binary again.
#[test]
fn a_neighbour_does_not_disturb() -> Result<()> {
    const TASK: &str = "LAB_NEIGHBOUR";
    if std::env::var_os(TASK).is_some() {
        return neighbour();
    }
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--exact", "a_neighbour_does_not_disturb", "--nocapture"]).env(TASK, "1").stdout(Stdio::piped());
    let mut other = lab::child::Proc::spawn("a neighbour", &mut command)?;
    let mut lines = BufReader::new(other.take_stdout().expect("piped")).lines();
    assert!(lines.any(|l| l.is_ok_and(|l| l.contains("neighbour is busy"))));

    let lab = Lab::new();
    let mut mine = lab.disk(&lab.volume().serial, SIZE)?;
    lab.claim(mine.serial())?;
    lab.attach_settled(&mut mine)?;
    for _ in 0..20 {
        let mut disk = lab.disk(&lab.volume().serial, 1 << 20)?;
        lab.attach_settled(&mut disk)?;
        assert_eq!(group_and_mode(&disk), (DISK_GROUP, 0o660));
        assert_eq!(group_and_mode(&mine), (people::NBD.id, 0o660));
        let nodes = fs::read_dir("/dev")?.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("loop"));
        assert_eq!(nodes.count(), 3, "loop-control and my two disks");
        assert_eq!(fs::read_dir("/dev/disk/by-id")?.count(), 2, "my links only");
        lab.detach_settled(&mut disk)?;
    }
    // It is killed while it works: what it leaves must be removed by the next lab that takes its slot.
    other.kill()
}

fn neighbour() -> Result<()> {
    let lab = Lab::new();
    for turn in 0.. {
        let mut disk = lab.disk(&lab.volume().serial, 1 << 20)?;
        if turn % 2 == 0 {
            lab.claim(disk.serial())?;
        }
        lab.attach_settled(&mut disk)?;
        if turn == 0 {
            println!("neighbour is busy");
        }
        disk.detach()?;
    }
    Ok(())
}

#[test]
fn a_volume_that_the_cloud_attaches_is_a_disk_here_until_it_is_detached() -> Result<()> {
    let lab = Lab::new();
    let cloud = lab.cloud(stand_in::Setup::default())?;
    let volume = lab.volume();
    cloud.add(&volume, SIZE);
    let ear = lab.bare_listener()?;
    cloud.attach(&volume.id, cloud.vm_here())?;
    assert!(cloud.node(&volume).is_some_and(|node| node.exists()), "before the cloud has said so");
    ear.wait_for(SOON, |heard| heard.get("ID_SERIAL") == volume.serial)?;
    assert_eq!(cloud.node(&volume), fs::canonicalize(volume.link()).ok());
    assert!(fs::read(volume.link())? == fs::read(cloud.file(&volume)?)?, "the bytes differ");
    // A guest without power has no disks; with power it has those of its volumes.
    cloud.switch_vm(cloud.vm_here(), false)?;
    assert!(cloud.node(&volume).is_none() && cloud.volume(&volume.id).is_some_and(|volume| volume.vm.is_some()));
    cloud.switch_vm(cloud.vm_here(), true)?;
    assert!(cloud.node(&volume).is_some());
    cloud.detach(&volume.id)?;
    assert!(cloud.node(&volume).is_none() && cloud.volume(&volume.id).is_some_and(|volume| volume.vm.is_none()));
    Ok(())
}
