//! The journal: one volume's whole story under its name, and a journald that hangs.

use std::collections::HashSet;
use std::fs;
use std::time::{Duration, Instant};

use lab::Volume;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::host::{Host, MIB, SOON};

/// Returns the journal's entries for a volume, in order.
fn story(host: &Host, volume: &Volume) -> Vec<Value> {
    let lines = host.inside.journalctl(&["--output=json", &format!("VOLUME_ID={}", volume.id)]).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn field<'entry>(entry: &'entry Value, name: &str) -> &'entry str {
    entry[name].as_str().unwrap_or_default()
}

fn has_withdrawn(host: &Host, volume: &Volume) -> bool {
    story(host, volume).iter().any(|entry| field(entry, "EVENT") == "withdrawn")
}

#[test]
fn the_journal_tells_the_whole_story_of_a_volume_and_explains_it() {
    let host = Host::installed();
    let volume = host.lab().volume();
    let mut disk = host.lab().disk(&volume.serial, MIB).unwrap();
    host.intend(&volume);
    disk.attach().unwrap();
    host.wait(&volume, "ready");
    let (node, diskseq) = (disk.node().display().to_string(), disk.diskseq().unwrap().to_string());
    disk.detach().unwrap();
    host.wait(&volume, "lost");
    disk.attach().unwrap();
    host.wait(&volume, "ready");
    host.served();
    host.withdraw(&volume);
    // Another thread writes the entries, so the last may come a moment after the answer.
    let begun = Instant::now();
    while !has_withdrawn(&host, &volume) {
        assert!(begun.elapsed() < SOON, "{}", host.story());
    }

    let entries = story(&host, &volume);
    for entry in &entries {
        println!("{} {:9} {}", field(entry, "MESSAGE_ID"), field(entry, "EVENT"), field(entry, "MESSAGE"));
    }
    let events: Vec<&str> = entries.iter().map(|entry| field(entry, "EVENT")).collect();
    let life = ["heard", "proven", "recorded", "published", "ready"];
    let expected = [&["intent"], &life[..], &["revoked", "lost"], &life, &["revoked", "withdrawn"]].concat();
    assert_eq!(events, expected);
    for entry in &entries {
        assert_eq!(field(entry, "SERIAL"), volume.serial, "{entry:#}");
        assert_eq!(field(entry, "EXPORT"), volume.export(), "{entry:#}");
        assert_eq!(field(entry, "SYSLOG_IDENTIFIER"), "attachd", "{entry:#}");
        // The first time the disk was pulled; the second time somebody asked for the revocation.
        let unasked = field(entry, "EVENT") == "revoked" && field(entry, "UID").is_empty();
        let priority = if unasked || field(entry, "EVENT") == "lost" { "4" } else { "6" };
        assert_eq!(field(entry, "PRIORITY"), priority, "{entry:#}");
        assert_eq!(field(entry, "_SYSTEMD_UNIT"), "attachd.service", "{entry:#}");
    }
    let loud =
        host.inside.journalctl(&["--output=cat", "--priority=warning", &format!("VOLUME_ID={}", volume.id)]).unwrap();
    assert_eq!(loud.lines().count(), 2, "{loud}");
    let ready = entries.iter().find(|entry| field(entry, "EVENT") == "ready").unwrap();
    assert_eq!((field(ready, "DEVNAME"), field(ready, "DISKSEQ")), (node.as_str(), diskseq.as_str()), "{ready:#}");
    assert_eq!(field(ready, "MESSAGE"), format!("volume {}: ready", volume.id));

    // Each kind of event has one id, and each id has an explanation.
    let ids: HashSet<(&str, &str)> =
        entries.iter().map(|entry| (field(entry, "EVENT"), field(entry, "MESSAGE_ID"))).collect();
    assert_eq!(ids.len(), events.iter().collect::<HashSet<_>>().len(), "{ids:?}");
    for (event, id) in ids {
        let explained = host.run("journalctl", &["--catalog", "--no-pager", &format!("MESSAGE_ID={id}")]);
        assert!(explained.contains("Subject: ") && explained.contains("Defined-By: attachd"), "{explained}");
        assert!(!explained.contains("@VOLUME_ID@"), "{event}: {explained}");
    }
    let explained = host.run("journalctl", &["-x", "--no-pager", &format!("VOLUME_ID={}", volume.id)]);
    println!("{explained}");
    assert!(explained.contains(&volume.id));
}

/// What an operator finds who looks for problems, and what `systemctl status` shows.
#[test]
fn each_state_has_its_journal_entry_with_the_right_priority() {
    let host = Host::installed();
    let (lost, mut disk) = host.served();
    disk.detach().unwrap();
    host.wait(&lost, "lost");
    let expired = host.lab().volume();
    let asked = serde_json::json!({ "volume_id": expired.id, "deadline_seconds": 0 });
    host.api.post("/api/v1/intents", &asked).unwrap().expect(201).unwrap();
    host.wait(&expired, "expired");
    let waiting = host.lab().volume();
    host.intend(&waiting);
    let priority_of = |volume: &Volume, step: &str| {
        let begun = Instant::now();
        loop {
            let entries = story(&host, volume);
            if let Some(entry) = entries.iter().find(|entry| field(entry, "EVENT") == step) {
                return field(entry, "PRIORITY").to_owned();
            }
            assert!(begun.elapsed() < SOON, "{}", host.story());
        }
    };
    let steps = [(&lost, "ready"), (&lost, "revoked"), (&lost, "lost"), (&expired, "expired"), (&waiting, "intent")];
    assert_eq!(steps.map(|(volume, step)| priority_of(volume, step)), ["6", "4", "4", "5", "6"]);
    let begun = Instant::now();
    loop {
        let status = host.inside.property("attachd.service", "StatusText").unwrap();
        if status == "volumes: 1 waiting, 1 lost, 1 expired" {
            break;
        }
        assert!(begun.elapsed() < SOON, "{status}");
    }
}

fn main_pid(host: &Host, unit: &str) -> Pid {
    Pid::from_raw(host.inside.main_pid(unit).unwrap().cast_signed()).unwrap()
}

/// Returns how often the daemon's journal thread has gone to sleep.
fn naps(host: &Host) -> u64 {
    let pid = host.inside.main_pid("attachd.service").unwrap();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|task| task.unwrap().path());
    let mut writers = tasks.filter(|task| fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm == "journal\n"));
    let status = fs::read_to_string(writers.next().expect("the thread").join("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    line.trim().parse().unwrap()
}

#[test]
fn the_thread_that_writes_the_journal_sleeps_until_there_is_something_to_write() {
    let host = Host::installed();
    let (volume, _disk) = host.served();
    // The last entry is in the journal, so nothing is left to write.
    let begun = Instant::now();
    while !story(&host, &volume).iter().any(|entry| field(entry, "EVENT") == "ready") {
        assert!(begun.elapsed() < SOON, "{}", host.story());
    }
    let before = naps(&host);
    for _ in 0..200 {
        host.api.get("/api/v1/health").unwrap();
    }
    assert_eq!(naps(&host), before);
    host.withdraw(&volume);
    let begun = Instant::now();
    while naps(&host) == before {
        assert!(begun.elapsed() < SOON, "the control");
    }
}

/// journald, stopped. It continues when this is dropped, so that systemd is not left with a journald that reads
/// nothing.
struct Stopped(Pid);

impl Stopped {
    fn journald(host: &Host) -> Self {
        let pid = main_pid(host, "systemd-journald.service");
        kill_process(pid, Signal::STOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

#[test]
fn a_hanging_journald_delays_nothing_and_lost_entries_are_counted() {
    // More entries than the queue can hold.
    const INTENTS: usize = 4800;
    let host = Host::installed();
    let (volume, mut disk) = host.served();
    let stopped = Stopped::journald(&host);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..INTENTS / 8 {
                    host.intend(&Volume::random());
                }
            });
        }
    });
    println!("{INTENTS} intents accepted in {:.1?} while journald hangs", begun.elapsed());
    // The main job continues: a pulled disk's export is removed at once, and comes back.
    disk.detach().unwrap();
    host.wait(&volume, "lost");
    disk.attach().unwrap();
    host.wait(&volume, "ready");
    drop(stopped);
    let told = |words: &str| {
        let said = host.inside.journalctl(&["--output=cat", "SYSLOG_IDENTIFIER=attachd"]).unwrap();
        said.lines().find(|line| line.contains(words)).map(str::to_owned)
    };
    let begun = Instant::now();
    let count = loop {
        assert!(begun.elapsed() < SOON, "{}", host.story());
        if let Some(line) = told("journal entries of attachd were lost: journald did not take them") {
            break line;
        }
    };
    println!("{count}");

    // The stop does not wait for journald either.
    let stopped = Stopped::journald(&host);
    for _ in 0..100 {
        host.intend(&Volume::random());
    }
    let took = host.show("systemctl", &["stop", "attachd.service"]);
    drop(stopped);
    println!("stopped in {took:.1?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(host.inside.property("attachd.service", "Result").unwrap(), "success");
}
