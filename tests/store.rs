//! The store in trouble: locked, hanging, removed, full. The records stay exactly the same, and a change of the wall
//! clock changes nothing.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::*;
use lab::child::{Held, Proc};
use lab::{Api, Attachd, AttachdOptions, Disk, Freezable, Lab, Volume};
use serde_json::{Value, json};

const STORE: &str = "/var/lib/attachd/attachd.db";

/// The time limit of an answer on a busy machine. On an idle one it takes 1 s.
const ANSWER: Duration = Duration::from_secs(4);

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    for piece in [&[0; 4096][..], &[0]] {
        while file.write_all(piece).is_ok() {}
    }
}

/// Sends a request whose answer must come in time.
fn in_time(api: &Api, method: &str, path: &str, body: Option<&Value>) -> lab::Reply {
    let begun = Instant::now();
    let reply = api.request(method, path, body.map(ToString::to_string).as_deref(), SOON).unwrap();
    assert!(begun.elapsed() < ANSWER, "{method} {path}: {:?}", begun.elapsed());
    reply
}

fn post(api: &Api, volume: &Volume) -> lab::Reply {
    in_time(api, "POST", "/api/v1/intents", Some(&json!({ "volume_id": volume.id })))
}

/// Returns health's problems about the store.
fn problems(health: &Value) -> Vec<&str> {
    let codes = health["problems"].as_array().unwrap().iter().map(|problem| problem["code"].as_str().unwrap());
    codes.filter(|code| code.starts_with("STORE_")).collect()
}

/// Pulls a disk: its export must be removed at once, whatever the store does.
fn pulled(lab: &Lab, volume: &Volume, disk: &mut Disk) {
    let folder = lab::watch::FolderWatch::new(Path::new("/run/attachd/exports")).unwrap();
    let link = format!("/run/attachd/exports/{}", volume.export());
    assert!(fs::symlink_metadata(&link).is_ok(), "the control: it is offered");
    disk.detach().unwrap();
    let begun = Instant::now();
    while fs::symlink_metadata(&link).is_ok() {
        assert!(begun.elapsed() < ANSWER, "the pulled disk's export is still there");
        lab::watch::readable(&[folder.fd()], ANSWER).unwrap();
        folder.take();
    }
    assert!(!lab.nbd_connects(&volume.export()));
}

/// Another program that holds SQLite's lock until this is dropped.
struct Locked(Child);

impl Locked {
    fn new() -> Self {
        let mut child =
            Command::new("sqlite3").arg(STORE).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.as_mut().unwrap().write_all(b".timeout 10000\nBEGIN IMMEDIATE;\nSELECT 'locked';\n").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "locked\n");
        Self(child)
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[test]
fn while_another_program_has_the_stores_lock_every_request_is_answered_and_it_goes_on_after_it() {
    let (lab, _attachd, api) = up();
    let (gone, mut gone_disk) = served(&lab, &api);
    let (stays, _stays_disk) = served(&lab, &api);
    let waiting = lab.volume();
    intend(&api, &waiting);

    let locked = Locked::new();
    let holder = format!("is locked by sqlite3 (process {} of root)", locked.0.id());
    let writers: Vec<_> = (0..8)
        .map(|_| {
            let (api, volume) = (api.clone(), lab.volume());
            std::thread::spawn(move || post(&api, &volume))
        })
        .collect();
    for writer in writers {
        let reply = writer.join().unwrap();
        assert_eq!((reply.status, &reply.json["code"]), (503, &json!("STORE_BUSY")), "{}", reply.text);
        assert_eq!(reply.header("retry-after"), Some("1"));
        let said = reply.json["error"].as_str().unwrap();
        assert!(said.contains(&holder), "it is said who has it: {said}");
    }
    let health = in_time(&api, "GET", "/api/v1/health", None);
    assert_eq!((health.status, problems(&health.json)), (503, vec!["STORE_BUSY"]));
    let hint = health.json["problems"][0]["hint"].as_str().unwrap();
    assert!(hint.starts_with(&format!("End process {}", locked.0.id())), "{hint}");
    let shown = in_time(&api, "GET", &format!("/api/v1/volumes/{}", stays.id), None).expect(200).unwrap();
    assert_eq!(shown["timeline_incomplete"], false, "what is on record can be read");
    let refused = in_time(&api, "DELETE", &format!("/api/v1/intents/{}", stays.id), None);
    assert_eq!(refused.json["code"], "STORE_BUSY", "{}", refused.text);

    pulled(&lab, &gone, &mut gone_disk);
    let mut events = api.events().unwrap();
    let mut disk = lab.disk(&waiting.serial, MIB).unwrap();
    disk.attach().unwrap();
    events.wait_for(|event| event["reason"]["code"] == "STORE_BUSY", SOON).unwrap();
    assert!(!lab.nbd_connects(&waiting.export()), "nothing is served that is not recorded");

    drop(locked);
    wait(&api, &waiting, "ready");
    wait(&api, &stays, "ready");
    assert_eq!(api.get("/api/v1/health").unwrap().json["store"]["state"], "ok");
    let shown = show(&api, &gone);
    assert_eq!(story(&shown).last().map(String::as_str), Some("lost"), "{shown:#}");
}

#[test]
fn while_the_store_hangs_health_metrics_and_volumes_are_answered_and_disks_are_revoked_and_it_goes_on_after_it() {
    let mut lab = Lab::new();
    let own = Freezable::mount(&lab).unwrap();
    lab.attachd_config(&format!("{CONFIG}[store]\npath = \"{}/attachd.db\"\n", Freezable::PLACE)).unwrap();
    lab.nbdkit_start().unwrap();
    let mut attachd = start(&lab);
    let api = attachd.api();
    let (gone, mut gone_disk) = served(&lab, &api);
    let (stays, stays_disk) = served(&lab, &api);
    let (waiting, flapping) = (lab.volume(), lab.volume());
    intend(&api, &waiting);
    intend(&api, &flapping);
    let mut flapping_disk = lab.disk(&flapping.serial, MIB).unwrap();

    let hanging = own.freeze().unwrap();
    let undecided = lab.volume();
    let reply = post(&api, &undecided);
    assert_eq!((reply.status, &reply.json["code"]), (503, &json!("STORE_SILENT")), "{}", reply.text);
    assert_eq!(reply.header("retry-after"), Some("1"));
    let health = in_time(&api, "GET", "/api/v1/health", None);
    assert_eq!((health.status, problems(&health.json)), (503, vec!["STORE_SILENT"]));
    assert!(health.json["store"]["error"].as_str().unwrap().contains("does not answer (since "), "{}", health.text);
    let metrics = in_time(&api, "GET", "/metrics", None);
    assert!(metrics.text.contains("attachd_store_failing 1"), "{}", metrics.text);
    in_time(&api, "GET", "/api/v1/volumes", None).expect(200).unwrap();
    let shown = in_time(&api, "GET", &format!("/api/v1/volumes/{}", stays.id), None).expect(200).unwrap();
    assert_eq!(shown["state"], "ready");
    // More changes than any queue could hold if each were kept.
    pulled(&lab, &gone, &mut gone_disk);
    for _ in 0..20 {
        flapping_disk.attach().unwrap();
        flapping_disk.detach().unwrap();
    }
    let mut disk = lab.disk(&waiting.serial, MIB).unwrap();
    disk.attach().unwrap();
    in_time(&api, "GET", &format!("/api/v1/intents/{}", waiting.id), None).expect(200).unwrap();
    assert!(!lab.nbd_connects(&waiting.export()), "nothing is served that is not recorded");

    drop(hanging);
    wait(&api, &waiting, "ready");
    lab.nbdcopy_equals(&stays.export(), stays_disk.file()).unwrap();
    assert_eq!(api.get("/api/v1/health").unwrap().json["store"]["state"], "ok");
    // The undecided request was carried out, and the same request again says so.
    let again = api.post("/api/v1/intents", &json!({ "volume_id": undecided.id })).unwrap();
    assert!(matches!(again.status, 200 | 201), "{}", again.text);
    assert!(attachd.terminate().unwrap().success());
}

/// What a killed test leaves behind does not affect the next: the file system is thawed, and the next slot is free.
#[test]
fn a_test_that_is_killed_while_the_store_hangs_leaves_nothing_that_hangs() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "hangs_until_it_is_killed", "--ignored", "--nocapture"]).stdout(Stdio::piped());
    let mut test = Proc::spawn("test", &mut command).unwrap();
    let mut lines = BufReader::new(test.take_stdout().unwrap()).lines().map(Result::unwrap);
    let said = lines.find_map(|line| Some(line.split_once("hanging: ")?.1.to_owned())).unwrap();
    let (daemon, file) = said.split_once(' ').unwrap();
    let daemon = Held::open(daemon.parse().unwrap()).expect("the control: the daemon is there");
    assert!(loop_device_of(file).is_some() && Path::new(file).exists(), "the control: the frozen disk is there");
    test.kill().unwrap();
    daemon.wait_gone(SOON).unwrap();
    // The kernel releases the file system a moment after its last process; each new lab sweeps what it can.
    let begun = Instant::now();
    while loop_device_of(file).is_some() || Path::new(file).exists() {
        assert!(begun.elapsed() < SOON, "{file} hangs as {:?}", loop_device_of(file));
        std::thread::spawn(|| drop(Lab::new())).join().unwrap();
    }
}

/// Returns the loop device of this file, even if the file is deleted.
fn loop_device_of(file: &str) -> Option<String> {
    let devices = fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().path());
    let backing = |device: &Path| fs::read_to_string(device.join("loop/backing_file")).unwrap_or_default();
    let device = devices.into_iter().find(|device| backing(device).starts_with(file))?;
    Some(device.file_name()?.to_string_lossy().into_owned())
}

#[test]
#[ignore = "it ends when it is killed: the other test begins it"]
fn hangs_until_it_is_killed() {
    let mut lab = Lab::new();
    let own = Freezable::mount(&lab).unwrap();
    lab.attachd_config(&format!("{CONFIG}[store]\npath = \"{}/attachd.db\"\n", Freezable::PLACE)).unwrap();
    lab.nbdkit_start().unwrap();
    let attachd = start(&lab);
    let _frozen = own.freeze().unwrap();
    let reply = post(&attachd.api(), &lab.volume());
    assert_eq!(reply.json["code"], "STORE_SILENT", "{}", reply.text);
    println!("hanging: {} {}", attachd.pid().unwrap(), own.disk().file().display());
    loop {
        std::thread::park();
    }
}

#[test]
fn a_store_that_is_removed_or_replaced_is_refused_before_any_answer_and_nothing_is_lost() {
    for replaced in [false, true] {
        std::thread::spawn(move || removed_or_replaced(replaced)).join().unwrap();
    }
}

fn removed_or_replaced(replaced: bool) {
    let (lab, mut attachd, api) = up();
    let (volume, disk) = served(&lab, &api);
    let before = lab.volume();
    intend(&api, &before);
    if replaced {
        fs::write("/var/lib/attachd/new", "a stranger's").unwrap();
        fs::rename("/var/lib/attachd/new", STORE).unwrap();
    } else {
        for suffix in ["", "-wal", "-shm"] {
            fs::remove_file(format!("{STORE}{suffix}")).unwrap();
        }
    }
    let after = lab.volume();
    let refused = post(&api, &after);
    assert_eq!((refused.status, &refused.json["code"]), (503, &json!("STORE_LOST")), "{}", refused.text);
    let health = api.get("/api/v1/health").unwrap();
    assert_eq!((health.status, &health.json["status"]), (503, &json!("unhealthy")));
    let message = health.json["store"]["error"].as_str().unwrap();
    let (_, saved) = message.split_once("is saved as ").unwrap_or_else(|| panic!("{message}"));
    let saved = saved.split(';').next().unwrap();
    lab.nbdcopy_equals(&volume.export(), disk.file()).unwrap();

    attachd.kill9().unwrap();
    if replaced {
        assert_eq!(fs::read_to_string(STORE).unwrap(), "a stranger's", "it is left alone");
        // As the hint says.
        fs::rename(STORE, "/var/lib/attachd/aside").unwrap();
    }
    let attachd = start(&lab);
    assert!(!Path::new(saved).exists(), "it is the store again");
    let api = attachd.api();
    wait(&api, &volume, "ready");
    for (volume, status) in [(&volume, 200), (&before, 200), (&after, 404)] {
        assert_eq!(api.get(&format!("/api/v1/intents/{}", volume.id)).unwrap().status, status);
    }
    assert_eq!(api.get("/api/v1/health").unwrap().json["store"]["state"], "ok");
}

/// With the log of a daemon that was killed, and without a log.
#[test]
fn a_start_on_a_full_disk_serves_recorded_volumes_and_recovers_when_there_is_room() {
    for orderly in [true, false] {
        std::thread::spawn(move || started_on_a_full_disk(orderly)).join().unwrap();
    }
}

fn started_on_a_full_disk(orderly: bool) {
    let mut lab = Lab::new();
    let small = "/run/small";
    fs::create_dir(small).unwrap();
    let owner = format!("size=2m,mode=0755,uid={},gid={}", lab::people::ATTACHD.id, lab::people::ATTACHD.id);
    run("mount", &["-t", "tmpfs", "-o", &owner, "tmpfs", small]);
    lab.attachd_config(&format!("{CONFIG}[store]\npath = \"{small}/attachd.db\"\n")).unwrap();
    lab.nbdkit_start().unwrap();
    let mut attachd = start(&lab);
    let (kept, kept_disk) = served(&lab, &attachd.api());
    let waiting = lab.volume();
    intend(&attachd.api(), &waiting);
    if orderly {
        attachd.terminate().unwrap();
        // Free space inside the log would be found again when the log is written into the database.
        run("sqlite3", &[&format!("{small}/attachd.db"), "PRAGMA wal_checkpoint(TRUNCATE)"]);
        assert!(!fs::exists(format!("{small}/attachd.db-wal")).unwrap());
    } else {
        attachd.kill9().unwrap();
        // The next program that opens the store makes this file again, and there is no room for it.
        fs::remove_file(format!("{small}/attachd.db-shm")).unwrap();
    }
    let filler = Path::new(small).join("filler");
    fill(&filler);

    let mut attachd = start(&lab);
    let api = attachd.api();
    wait(&api, &kept, "ready");
    lab.nbdcopy_equals(&kept.export(), kept_disk.file()).unwrap();
    assert_eq!(show(&api, &waiting)["state"], "waiting");
    assert_eq!(show(&api, &kept)["timeline_incomplete"], false);
    let health = in_time(&api, "GET", "/api/v1/health", None);
    assert_eq!((health.status, problems(&health.json)), (503, vec!["STORE_FULL"]));
    assert!(
        health.json["store"]["error"].as_str().unwrap().contains("/run/small/attachd.db is full"),
        "{}",
        health.text
    );
    let refused = lab.volume();
    let reply = post(&api, &refused);
    assert_eq!((reply.status, &reply.json["code"]), (503, &json!("STORE_FULL")), "{}", reply.text);
    let mut disk = lab.disk(&waiting.serial, MIB).unwrap();
    disk.attach().unwrap();
    wait_reason(&api, &waiting, "STORE_FULL");
    assert!(!lab.nbd_connects(&waiting.export()), "nothing is served that is not recorded");

    fs::remove_file(&filler).unwrap();
    wait(&api, &waiting, "ready");
    intend(&api, &refused);
    assert_eq!(api.get("/api/v1/health").unwrap().json["store"]["state"], "ok");
    attachd.kill9().unwrap();
    let attachd = start(&lab);
    assert_eq!(attachd.api().get("/api/v1/intents").unwrap().expect(200).unwrap()["count"], 3);
    drop(attachd);
    run("umount", &[small]);
}

/// Invariant 14.
#[test]
fn an_accepted_intent_reads_the_same_after_a_restart_and_can_be_repeated() {
    let (lab, mut attachd, api) = up();
    let (ready, _disk) = served(&lab, &api);
    let mut asked = Vec::new();
    for size in [1, (1 << 53) + 1, i64::MAX.unsigned_abs()] {
        let body = json!({
            "volume_id": lab.volume().id, "size_bytes": size, "deadline_seconds": u32::MAX, "vm_id": "vm-\u{e4}\u{202e}x"
        });
        asked.push((body.clone(), api.post("/api/v1/intents", &body).unwrap().expect(201).unwrap()));
    }
    for size in [1 << 63, u64::MAX] {
        let body = json!({ "volume_id": lab.volume().id, "size_bytes": size });
        let refused = api.post("/api/v1/intents", &body).unwrap().expect(422).unwrap();
        assert!(refused["error"].as_str().unwrap().contains("from 1 to 9223372036854775807"), "{refused:#}");
    }
    let volume = |api: &Api, id: &Value| api.get(&format!("/api/v1/volumes/{}", id.as_str().unwrap())).unwrap().json;
    let ids: Vec<Value> = asked.iter().map(|(body, _)| body["volume_id"].clone()).chain([json!(ready.id)]).collect();
    let before: Vec<Value> = ids.iter().map(|id| volume(&api, id)).collect();
    attachd.terminate().unwrap();
    let attachd = start(&lab);
    let api = attachd.api();
    wait(&api, &ready, "ready");
    for (id, before) in ids.iter().zip(before) {
        let mut after = volume(&api, id);
        for field in ["since", "state", "size_bytes", "evidence", "vm_id", "diskseq"] {
            assert_eq!(after[field], before[field], "{field}");
        }
        // The entries of this run follow those of the last.
        let told = before["timeline"].as_array().unwrap().len();
        after["timeline"].as_array_mut().unwrap().truncate(told);
        assert_eq!(after["timeline"], before["timeline"]);
    }
    for (body, first) in asked {
        let again = api.post("/api/v1/intents", &body).unwrap().expect(200).unwrap();
        assert_eq!(again, first);
    }
}

/// The wall clock of a daemon, set by the test.
struct Clock(String);

impl Clock {
    fn new(lab: &Lab) -> Self {
        let clock = Self(lab.dir().join("clock").to_str().unwrap().to_owned());
        clock.set(0);
        clock
    }

    fn set(&self, seconds: i64) {
        let new = format!("{}.new", self.0);
        fs::write(&new, seconds.to_string()).unwrap();
        fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        fs::rename(new, &self.0).unwrap();
    }

    fn start(&self, lab: &Lab) -> Attachd {
        let env = vec![("ATTACHD_WALL_SHIFT".to_owned(), self.0.clone())];
        lab.attachd_start(bin(), &AttachdOptions { env, ..Default::default() }).unwrap()
    }
}

const YEAR: i64 = 365 * 86_400;

#[test]
fn a_wall_clock_that_jumps_by_a_year_changes_no_deadline_and_deletes_nothing() {
    for jump in [YEAR, -YEAR] {
        std::thread::spawn(move || jumped(jump)).join().unwrap();
    }
}

fn jumped(jump: i64) {
    let lab = with_nbdkit();
    let clock = Clock::new(&lab);
    let mut attachd = clock.start(&lab);
    let api = attachd.api();
    let gone = lab.volume();
    intend(&api, &gone);
    withdraw(&api, &gone);
    let (short, long) = (lab.volume(), lab.volume());
    let with_deadline = |volume: &Volume, seconds: u32| {
        let body = json!({ "volume_id": volume.id, "deadline_seconds": seconds });
        api.post("/api/v1/intents", &body).unwrap().expect(201).unwrap()
    };
    let said = with_deadline(&long, 3600);
    let begun = Instant::now();
    with_deadline(&short, 3);
    clock.set(jump);
    // The control: the daemon has another time.
    let time = |value: &Value| value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let now = time(&api.get("/api/v1/health").unwrap().json["timestamp"]);
    let shift = now.duration_since(jiff::Timestamp::now()).as_secs();
    assert!((shift - jump).abs() < 60, "{shift}");

    // A resync makes every decision again.
    resync(&api);
    assert_eq!(show(&api, &long)["state"], "waiting");
    wait(&api, &short, "expired");
    assert!(begun.elapsed() >= Duration::from_secs(3), "{:?}", begun.elapsed());
    let shown = api.get(&format!("/api/v1/intents/{}", long.id)).unwrap().json;
    let moved = time(&shown["deadline_at"]).duration_since(time(&said["deadline_at"])).as_secs();
    assert!((moved - jump).abs() < 60, "as far away as before, by the clock as it goes now: {moved}");

    attachd.terminate().unwrap();
    let attachd = clock.start(&lab);
    let api = attachd.api();
    assert_eq!(show(&api, &long)["state"], "waiting", "after a restart under the wrong clock");
    let mut disk = lab.disk(&long.serial, MIB).unwrap();
    disk.attach().unwrap();
    let shown = wait(&api, &long, "ready");
    let steps = story(&shown);
    assert_eq!(steps.first().map(String::as_str), Some("intent"), "{steps:?}");
    assert_eq!(steps.last().map(String::as_str), Some("ready"), "{steps:?}");
    assert!(!steps.contains(&"late".to_owned()), "{steps:?}");
    // The stories of withdrawn volumes, a minute old: both clocks must keep them.
    let count = || {
        let query = format!("SELECT count(*) > 0 FROM timeline WHERE volume_id = '{}'", gone.id);
        let output = Command::new("sqlite3").args([STORE, &query]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    resync(&api);
    assert_eq!(count(), "1\n");
}
