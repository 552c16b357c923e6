//! A caller that polls while attachd is restarted, upgraded and killed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use lab::{Attachd, AttachdOptions, HeldSocket, Volume};
use serde_json::{Value, json};
use stand_in::{Gate, JobFault};

use crate::caller::{Caller, PORT};
use crate::common::*;
use crate::replay::Seen;
use crate::row::Then;
use crate::world::World;

/// Where the lab has the daemon's program.
const PROGRAM: &str = "/run/lab/bin/attachd";

/// How often the caller asks.
const EVERY: Duration = Duration::from_secs(2);

/// What the caller tells the test.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    /// It is about to ask.
    Asks,
    /// An answer has come, with this status of the operation.
    Status(String),
    /// No answer: its connection was refused or cut.
    Nothing(String),
}

/// Polls an operation as the common client does, until it has ended; tells the test of each request and answer.
fn polls(path: String, tell: Sender<Told>) {
    spawn(move || {
        let mut caller = Caller::default();
        let mut seen = Seen::default();
        loop {
            sleep(EVERY);
            tell.send(Told::Asks).unwrap();
            let told = match caller.request("GET", &path, None, Some(Duration::from_secs(30))) {
                Ok(reply) => Told::Status(seen.note(&reply)),
                Err(error) => Told::Nothing(format!("{error:#}")),
            };
            let ended = told == Told::Status("completed".to_owned());
            tell.send(told).unwrap();
            if ended {
                return;
            }
        }
    });
}

/// Puts a new copy of the program in the place of the one that may be running, as a package does.
fn install_program() {
    fs::create_dir_all("/run/lab/bin").unwrap();
    let fresh = Path::new(PROGRAM).with_extension("new");
    fs::copy(bin(), &fresh).unwrap();
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&fresh, PROGRAM).unwrap();
}

fn next(told: &Receiver<Told>) -> Told {
    told.recv_timeout(SOON).unwrap()
}

/// Waits for a request that begins now, and returns what becomes of the one that is under way.
fn until_it_asks(told: &Receiver<Told>) {
    while next(told) != Told::Asks {}
}

#[test]
fn a_caller_that_polls_sees_only_right_answers_while_attachd_is_restarted_upgraded_and_killed() {
    let sockets = |world: &World| Some(world.lab.held_socket().unwrap().and_tcp(PORT).unwrap());
    let nothing = is_attached_across_ends_of_attachd(sockets);
    assert_eq!(nothing, Vec::<String>::new(), "the sockets are systemd's: no request is refused or cut");
}

#[test]
fn without_a_socket_unit_a_caller_that_polls_meets_refused_connections_and_no_wrong_answer() {
    let nothing = is_attached_across_ends_of_attachd(|_| None);
    assert!(!nothing.is_empty(), "the control: attachd was away while the caller asked");
    let refused = |error: &String| error.contains("refused") || error.contains("No such file");
    assert!(nothing.iter().all(refused), "{nothing:?}");
}

/// Attaches a volume while attachd is stopped in order, replaced by a new program, and killed, each time just before the
/// caller asks. Returns the requests that were not answered.
fn is_attached_across_ends_of_attachd(sockets: impl Fn(&World) -> Option<HeldSocket>) -> Vec<String> {
    let mut world = World::stopped();
    install_program();
    let held = sockets(&world);
    let start = |world: &World| -> Attachd {
        let options = AttachdOptions::default();
        match &held {
            Some(held) => world.lab.attachd_start_activated(bin(), &options, held).unwrap(),
            None => world.lab.attachd_start(bin(), &options).unwrap(),
        }
    };
    world.attachd = Some(start(&world));
    let volume = world.lab.volume();
    world.cloud.add(&volume, MIB);
    let gate = Gate::new();
    world.cloud.next_job("attachVolume", JobFault::Held(gate.clone()));

    let attach = format!("/api/v1/volumes/{}/attach", volume.id);
    let body = json!({ "vm_id": world.cloud.vm_here() });
    let begun = Caller::default().request("POST", &attach, Some(&body), None).unwrap();
    assert_eq!(begun.status, 201, "{}", begun.text);
    let (tell, told) = channel();
    polls(format!("/api/v1/operations/{}", begun.json["id"].as_str().unwrap()), tell);
    world.cloud.wait_calls("attachVolume", 1, SOON).unwrap();

    let mut nothing = Vec::new();
    let ends: [fn(&mut Attachd); 3] = [
        |attachd| assert!(attachd.terminate().unwrap().success()),
        |attachd| {
            install_program();
            attachd.terminate().unwrap();
        },
        |attachd| attachd.kill9().unwrap(),
    ];
    for end in ends {
        end(world.attachd.as_mut().unwrap());
        // It asks while attachd is away.
        until_it_asks(&told);
        world.attachd = Some(start(&world));
        match next(&told) {
            Told::Status(status) => assert_eq!(status, "executing", "the cloud holds the job"),
            Told::Nothing(error) => nothing.push(error),
            Told::Asks => unreachable!("it waits for its answer"),
        }
    }
    gate.open();
    let mut last = Value::Null;
    while last != "completed" {
        match next(&told) {
            Told::Asks => {}
            Told::Status(status) => last = status.into(),
            Told::Nothing(error) => nothing.push(error),
        }
    }
    assert_eq!(world.cloud.calls_of("attachVolume").len(), 1, "{}", world.told());
    world.is("the volume", &volume.id, Then::Served);
    nothing
}

#[test]
fn rows_that_another_program_deletes_take_nothing_from_a_volume() {
    let world = World::new();
    let volume = world.lab.volume();
    world.cloud.add(&volume, MIB);
    let mut caller = Caller::default();
    let mut done = |method: &str, path: &str, body: Option<Value>| {
        let begun = caller.request(method, path, body.as_ref(), None).unwrap();
        assert_eq!(begun.status, 201, "{}", begun.text);
        world.end(&begun.json);
    };
    done("POST", &format!("/api/v1/volumes/{}/attach", volume.id), Some(json!({ "vm_id": world.cloud.vm_here() })));
    wait(&world.api(), &volume, "ready");
    let rows = |volume: &Volume| {
        let count = format!("SELECT count(*) FROM device_mappings WHERE volume_uuid = '{}'", volume.id);
        sql(&count).trim().parse::<u32>().unwrap()
    };
    // No event reports when rows are written.
    let begun = Instant::now();
    while rows(&volume) == 0 {
        assert!(begun.elapsed() < SOON, "the tables show the volume");
    }
    // As a deleted job cascades in the predecessor's database.
    sql("DELETE FROM nbd_exports; DELETE FROM device_mappings;");
    assert_eq!(rows(&volume), 0, "the control");
    world.is("the volume", &volume.id, Then::Served);
    done("POST", &format!("/api/v1/volumes/{}/detach", volume.id), None);
    world.is("the volume", &volume.id, Then::Detached);
}

/// Runs SQL as another program does, which waits for the lock.
fn sql(text: &str) -> String {
    let output =
        Command::new("sqlite3").args(["-cmd", ".timeout 10000", "/var/lib/attachd/attachd.db", text]).output().unwrap();
    assert!(output.status.success(), "{text}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
