//! Bad input: refused or repaired, and logged.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use lab::Volume;
use lab::watch::{FolderWatch, readable};

use crate::host::{Host, MIB, SOON, id_of};

/// Waits until one line of a unit's journal has these words. The daemon writes its entries in another thread, so the
/// last may come a moment after an answer.
fn journal_says(host: &Host, unit: &str, words: &[&str]) {
    let begun = Instant::now();
    loop {
        let journal = host.inside.journalctl(&["--output=cat", "--unit", unit]).unwrap();
        if let Some(line) = journal.lines().find(|line| words.iter().all(|word| line.contains(word))) {
            return println!("{line}");
        }
        assert!(begun.elapsed() < SOON, "{words:?} is not said in:\n{journal}");
    }
}

#[test]
fn a_malformed_request_to_the_helper_is_refused_and_logged() {
    let host = Host::installed();
    for (line, shown) in [
        ("retrigger /dev/vda\n", "retrigger /dev/vda"),
        ("retrigger ../../etc/passwd\n", "retrigger ../../etc/passwd"),
        ("holders vda\n", "holders vda"),
        ("\u{1b}[2Jrm -rf /\n", "u{1b}[2Jrm -rf /"),
        ("\n", "asked \"\""),
    ] {
        let answer = host.ask_helper(line);
        assert_eq!(answer["code"], "BAD_REQUEST", "{line:?}: {answer}");
        journal_says(&host, "attachd-helper", &["uid 0", "asked", shown, "BAD_REQUEST"]);
    }
    host.served();
}

/// A compromised daemon could write such a claim. The claim marks no disk while the daemon runs, because the daemon
/// removes it. A foreign file is left alone, and logged.
#[test]
fn claims_added_or_removed_by_hand_are_repaired_and_logged() {
    let host = Host::installed();
    let (volume, _disk) = host.served();
    let stranger = host.lab().volume();
    let disk = host.lab().settled_disk(&stranger.serial, MIB).unwrap();
    let claims = Path::new("/var/lib/attachd/claims");
    fs::write(claims.join(&stranger.serial), "").unwrap();
    let attachd = id_of("/etc/passwd", "attachd");
    std::os::unix::fs::chown(claims.join(&stranger.serial), Some(attachd), Some(attachd)).unwrap();
    fs::write(claims.join("not-a-serial"), "").unwrap();
    fs::remove_file(claims.join(&volume.serial)).unwrap();

    host.run("attachctl", &["resync"]);
    assert!(!claims.join(&stranger.serial).exists() && claims.join(&volume.serial).exists());
    journal_says(&host, "attachd", &["belonged to no intent", &stranger.serial, "repaired"]);
    journal_says(&host, "attachd", &["were missing", &volume.serial, "repaired"]);
    assert!(claims.join("not-a-serial").exists(), "a stranger's file");
    let health = host.api.get("/api/v1/health").unwrap().text;
    assert!(health.contains("FOREIGN_CLAIMS") && health.contains("not-a-serial"), "{health}");
    host.run("udevadm", &["trigger", "--action=add", "--settle", disk.node().to_str().unwrap()]);
    assert_ne!(fs::metadata(disk.node()).unwrap().gid(), id_of("/etc/group", "attachd-nbd"));
    host.wait(&volume, "ready");
}

#[test]
fn a_list_of_host_disks_emptied_by_hand_is_filled_again_and_logged() {
    let volume = Volume::random();
    let (_root, host) = Host::installed_on(&volume);
    let folder = Path::new("/etc/attachd/host-disks");
    // Whatever was on the list: the helper's next answer is about this.
    host.ask_helper("host-disks\n");
    fs::remove_file(folder.join(&volume.serial)).expect("the root volume is on the list");
    let watch = FolderWatch::new(folder).unwrap();
    host.run("attachctl", &["resync"]);
    while !folder.join(&volume.serial).exists() {
        assert!(readable(&[watch.fd()], SOON).unwrap(), "{}", host.story());
        watch.take();
    }
    // The line is written before the answer; an answer to us comes after both.
    host.ask_helper("host-disks\n");
    let added = format!("\"added\":[\"{}\"]", volume.serial);
    journal_says(&host, "attachd-helper", &["asked \"host-disks\"", &added]);
}
