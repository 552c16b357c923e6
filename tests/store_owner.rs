//! A store that another process or another program has: it is named, waited for if that helps, and left unchanged.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::*;
use lab::child::Proc;
use lab::{AttachdOptions, Lab, people};

const STORE: &str = "/var/lib/attachd/attachd.db";

/// Starts a process that has ended except for one thread, which holds the store's lock until its standard input is
/// closed. A killed daemon with a thread that hangs in the kernel looks like this.
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

/// Makes another program's database with `sqlite3`, and gives it to attachd's user.
fn foreign(path: &str, sql: &str) {
    // The program is killed, so that its log stays.
    let script = format!(".output /dev/null\n{sql}\n.system kill -9 $PPID\n");
    let mut sqlite = Command::new("sqlite3").arg(path).stdin(Stdio::piped()).spawn().unwrap();
    sqlite.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    sqlite.wait().unwrap();
    for (path, _) in contents(path) {
        std::os::unix::fs::chown(path, Some(people::ATTACHD.id), Some(people::ATTACHD.id)).unwrap();
    }
}

/// Returns every file of that name, with its content.
fn contents(path: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let path = Path::new(path);
    let name = path.file_name().unwrap().to_str().unwrap();
    let all = fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    let of_it = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(name);
    let mut all: Vec<_> = all.filter(of_it).filter(|path| path.extension().is_none_or(|end| end != "lock")).collect();
    all.sort();
    all.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

fn check_config() -> (bool, String) {
    let output = Command::new(bin()).args(["check-config", "--config", lab::attachd::CONFIG]).output().unwrap();
    (output.status.success(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn another_programs_database_is_refused_by_the_start_and_by_check_config_and_not_a_byte_of_it_changes() {
    let lab = with_nbdkit();
    let log = "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; VACUUM;";
    let tables = "CREATE TABLE customers (name); INSERT INTO customers VALUES ('Ada'); CREATE TABLE orders (n);";
    let scenes = [
        ("numbered", "PRAGMA application_id = 4711; CREATE TABLE intents (x);".to_owned(), "0x00001267"),
        ("tables", tables.to_owned(), "customers, orders"),
        ("log", format!("{log} {tables}"), "customers, orders"),
    ];
    for (name, sql, named) in scenes {
        for path in [format!("/var/lib/attachd/{name}.db"), STORE.to_owned()] {
            lab.attachd_config(&format!("{CONFIG}[store]\npath = \"{path}\"\n")).unwrap();
            assert!(check_config().0, "the control: nothing else is wrong");
            foreign(&path, &sql);
            let before = contents(&path);
            assert_eq!(before.iter().any(|(path, _)| path.to_str().unwrap().ends_with("-wal")), name == "log");
            for text in [check_config().1, start_fails(&lab)] {
                let why = "it is another program's database";
                assert!(text.contains(&path) && text.contains(why) && text.contains(named), "{name}: {text}");
            }
            assert!(contents(&path) == before, "{name}: {path} was written to");
            for (path, _) in before {
                fs::remove_file(path).unwrap();
            }
        }
    }
}

#[test]
fn a_store_of_an_earlier_version_is_known_by_its_tables_and_gets_its_number() {
    let (lab, mut attachd, api) = up();
    let volume = lab.volume();
    intend(&api, &volume);
    assert!(attachd.terminate().unwrap().success());
    let number = || sqlite("PRAGMA application_id");
    assert_ne!(number(), "0", "the control: it has one");
    sqlite("PRAGMA application_id = 0");
    assert_eq!(number(), "0");
    let mut attachd = start(&lab);
    attachd.api().get(&format!("/api/v1/intents/{}", volume.id)).unwrap().expect(200).unwrap();
    assert!(attachd.terminate().unwrap().success());
    assert_ne!(number(), "0");
    assert!(check_config().0);
}

fn sqlite(sql: &str) -> String {
    let output = Command::new("sqlite3").args([STORE, sql]).output().unwrap();
    assert!(output.status.success(), "{sql}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
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

    // The control: a holder that stays keeps the daemon from starting.
    let _stays = dying_holder();
    let text = start_fails(&lab);
    assert!(text.contains("was killed, and a thread of it hangs") && text.contains("/task/*/stack"), "{text}");
}
