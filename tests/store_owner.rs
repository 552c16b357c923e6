//! A store that another process or another program has: named, waited for if that helps, and left as it is.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::io::Read;
use std::process::{Command, Stdio};

use common::*;
use lab::child::Proc;
use lab::{AttachdOptions, Lab, people};

const STORE: &str = "/var/lib/attachd/attachd.db";

/// A process that has ended but for one thread, which has the store's lock until its standard input is closed: what is left
/// of a killed daemon while one of its threads hangs in the kernel.
fn dying_holder() -> Proc {
    let script = r#"
import ctypes, fcntl, os, sys, threading
lock = open(sys.argv[1], "a")
fcntl.flock(lock, fcntl.LOCK_EX)
def hold():
    while "State:\tZ" not in open("/proc/self/status").read():
        pass
    os.write(1, b"held")
    os.read(0, 1)
    os._exit(0)
threading.Thread(target=hold).start()
ctypes.CDLL(None).syscall(60, 0)
"#;
    let line = people::run_as(people::ATTACHD);
    let mut command = Command::new(&line[0]);
    command.args(&line[1..]).args(["/usr/bin/python3", "-c", script, &format!("{STORE}.lock")]);
    let mut process = Proc::spawn("holder", command.stdin(Stdio::piped()).stdout(Stdio::piped())).unwrap();
    process.take_stdout().unwrap().read_exact(&mut [0; 4]).unwrap();
    process
}

fn begin(lab: &Lab, env: Vec<(String, String)>) -> lab::Attachd {
    let options = AttachdOptions { wait_ready: false, env, ..Default::default() };
    lab.attachd_start(bin(), &options).unwrap()
}

#[test]
fn a_thread_that_is_left_of_the_last_daemon_is_named_and_waited_for() {
    let lab = with_nbdkit();
    let manager = lab.notify_socket().unwrap();
    let mut holder = dying_holder();
    let mut attachd = begin(&lab, vec![manager.env()]);
    let status = manager.next(SOON).unwrap().unwrap();
    assert!(status.starts_with("STATUS=waiting for up to "), "{status}");
    assert!(status.contains(&format!("the last attachd (process {}) still holds {STORE}", holder.pid())), "{status}");
    drop(holder.take_stdin());
    manager.wait_for("READY=1", SOON).unwrap();
    attachd.api().get("/api/v1/health").unwrap().expect(200).unwrap();
    assert!(attachd.terminate().unwrap().success());

    // The control: one that stays keeps the daemon from starting.
    let _stays = dying_holder();
    let text = start_fails(&lab);
    assert!(text.contains("was killed, and a thread of it hangs") && text.contains("/task/*/stack"), "{text}");
}
