//! The process that reads slow attributes: a read that hangs delays no other read and does not keep any process from
//! ending.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use attachd::device::attributes::Attributes;
use attachd::device::reader_process;

const SOON: Duration = Duration::from_secs(20);

/// Makes a folder with an attribute that answers, and one that blocks until something is written to it.
fn folder(at: &Path) -> File {
    fs::write(at.join("serial"), "0123456789abcdef0123").unwrap();
    assert!(Command::new("mkfifo").arg(at.join("stalled")).status().unwrap().success());
    // Opened for reading and writing, so that opening it for reading does not block.
    File::options().read(true).write(true).open(at.join("stalled")).unwrap()
}

/// Returns the reader processes of this process.
fn readers() -> Vec<u32> {
    let me = std::process::id();
    let children = fs::read_to_string(format!("/proc/{me}/task/{me}/children")).unwrap();
    let mut all: Vec<u32> = children.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    for task in fs::read_dir(format!("/proc/{me}/task")).unwrap() {
        let children = fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default();
        all.extend(children.split_whitespace().map(|pid| pid.parse::<u32>().unwrap()));
    }
    all.sort_unstable();
    all.dedup();
    let reads =
        |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default().ends_with(b"\0read-attributes\0");
    all.retain(reads);
    all
}

/// This is one test, because a process has only one reader.
#[test]
fn a_read_that_hangs_delays_no_other_read_and_a_dead_reader_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let mut stalled = folder(dir.path());
    let ask = |name: &'static str| {
        let attributes = Attributes::open(dir.path()).unwrap();
        let (done, answer) = mpsc::channel();
        thread::spawn(move || done.send(attributes.asked_text(name).map_err(|error| error.to_string())));
        answer
    };
    reader_process::begin(env!("CARGO_BIN_EXE_attachd").into());
    assert!(readers().is_empty(), "started when it is needed");
    assert_eq!(ask("serial").recv_timeout(SOON).unwrap().unwrap(), "0123456789abcdef0123");
    assert_eq!(readers().len(), 1);

    let hangs = ask("stalled");
    for _ in 0..100 {
        assert_eq!(ask("serial").recv_timeout(SOON).unwrap().unwrap(), "0123456789abcdef0123");
    }
    assert!(hangs.try_recv().is_err(), "the control: it has no answer");
    assert_eq!(readers().len(), 1, "one process for all");
    // The read hangs in another process; no thread of this one blocks.
    stalled.write_all(b"late").unwrap();
    assert_eq!(hangs.recv_timeout(SOON).unwrap().unwrap(), "late");

    let hangs = ask("stalled");
    assert_eq!(ask("serial").recv_timeout(SOON).unwrap().unwrap(), "0123456789abcdef0123");
    assert!(Command::new("kill").arg("-KILL").arg(readers()[0].to_string()).status().unwrap().success());
    assert!(hangs.recv_timeout(SOON).unwrap().unwrap_err().contains("has ended"));
    assert_eq!(ask("serial").recv_timeout(SOON).unwrap().unwrap(), "0123456789abcdef0123");
    assert_eq!(ask("nothing").recv_timeout(SOON).unwrap().unwrap_err(), "No such file or directory (os error 2)");
}
