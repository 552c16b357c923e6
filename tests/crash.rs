//! Kills the daemon at every step and restarts it: the end is the same (invariant 2).
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use common::*;
use lab::nbd_server::{FOLDER, NbdServer};
use lab::{Api, Attachd, AttachdOptions, Disk, Lab, Volume};
use rustix::process::Signal;
use serde_json::json;

const EFFECTS: &str = "/run/attachd/effects";
const CLAIMS: &str = "/var/lib/attachd/claims";
const EXPORTS: &str = "/run/attachd/exports";

/// The NBD server.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Nbdkit,
    /// nbd-server in signal mode.
    NbdServer,
}

/// A lab with a daemon that may die at any moment. Each step is repeated after a restart until it succeeds, as a
/// caller without an answer would repeat it.
struct Story {
    attachd: Attachd,
    deaths: u32,
    /// Volumes that were accepted and must be there after a restart.
    answered: Vec<Volume>,
    /// Volumes that are sealed and must never be served.
    sealed: Vec<Volume>,
    /// The number of points passed before the part of the story that is examined.
    before: usize,
    _nbd_server: Option<(NbdServer, Helper)>,
    lab: Lab,
}

impl Story {
    fn begin(kind: Kind, kill_at: Option<&str>) -> Self {
        let (lab, nbd_server) = match kind {
            Kind::Nbdkit => (with_nbdkit(), None),
            Kind::NbdServer => {
                let lab = Lab::new();
                let nbd_server = signalled(&lab);
                (lab, Some((nbd_server, Helper::start())))
            }
        };
        if kill_at.is_some() {
            lab.not_restarted("it is started again wherever it was killed, and its end is compared");
        }
        let mut options = AttachdOptions::default();
        options.env.push(("ATTACHD_EFFECT_LOG".into(), EFFECTS.into()));
        options.env.extend(kill_at.map(|point| ("ATTACHD_KILL_AT".into(), point.into())));
        // The daemon may be killed before its first answer.
        let (attachd, deaths) = match lab.attachd_start(bin(), &options) {
            Err(error) if kill_at.is_some() && error.to_string().contains("SIGKILL") => (start(&lab), 1),
            started => (started.unwrap(), 0),
        };
        Self { lab, attachd, deaths, answered: Vec::new(), sealed: Vec::new(), before: 0, _nbd_server: nbd_server }
    }

    /// Does a step until the daemon survives it.
    fn step<T>(&mut self, what: &str, step: impl Fn(&Api) -> anyhow::Result<T>) -> T {
        for _ in 0..5 {
            let result = step(&self.attachd.api());
            let error = match result {
                Ok(value) => return value,
                Err(error) => error,
            };
            // Either the daemon is dead, or its answer is wrong.
            self.attachd
                .wait_exit(SOON)
                .unwrap_or_else(|_| panic!("{what}: {error:#}\n{}", self.attachd.stderr_text()));
            self.deaths += 1;
            self.attachd = start(&self.lab);
            for volume in &self.answered {
                let path = format!("/api/v1/intents/{}", volume.id);
                assert_eq!(self.attachd.api().get(&path).unwrap().status, 200, "an answered intent is lost");
            }
            self.sealed_is_not_served();
        }
        panic!("{what}: the daemon dies again and again\n{}", self.attachd.stderr_text());
    }

    fn intend(&mut self) -> Volume {
        let volume = self.lab.volume();
        self.step("intend", |api| {
            let reply = api.post("/api/v1/intents", &json!({ "volume_id": volume.id }))?;
            anyhow::ensure!(matches!(reply.status, 200 | 201), "{}", reply.text);
            Ok(())
        });
        self.answered.push(volume.clone());
        volume
    }

    fn wait(&mut self, volume: &Volume, state: &str) {
        self.step(state, |api| api.wait_volume(&volume.id, state, SOON));
    }

    fn withdraw(&mut self, volume: &Volume) {
        self.answered.retain(|answered| answered != volume);
        self.step("withdraw", |api| {
            let reply = api.delete(&format!("/api/v1/intents/{}", volume.id))?;
            // 404: the answer to the first attempt was lost with the daemon.
            anyhow::ensure!(matches!(reply.status, 200 | 404), "{}", reply.text);
            Ok(())
        });
    }

    /// Calls seal, unseal or release, with an operation of the volume's own.
    fn operate(&mut self, call: &'static str, volume: &Volume) {
        let operation = &volume.id;
        if call == "unseal" {
            self.sealed.retain(|sealed| sealed != volume);
        }
        if call == "release" {
            self.answered.retain(|answered| answered != volume);
        }
        self.step(call, |api| {
            let reply = api.post(&format!("/kill-points/{call}/{}/{operation}", volume.id), &json!({}))?;
            let lost = call == "release" && reply.status == 404;
            anyhow::ensure!(reply.status == 200 || lost, "{}", reply.text);
            Ok(())
        });
        if call == "seal" {
            self.sealed.push(volume.clone());
        }
        self.sealed_is_not_served();
    }

    fn sealed_is_not_served(&self) {
        for volume in &self.sealed {
            let link = format!("{EXPORTS}/{}", volume.export());
            assert!(fs::symlink_metadata(link).is_err(), "what is sealed is published");
            assert!(self.lab.nbd_client(&volume.export()).is_err(), "what is sealed is served");
        }
    }

    fn serve(&mut self) -> (Volume, Disk) {
        let volume = self.intend();
        let disk = self.lab.settled_disk(&volume.serial, MIB).unwrap();
        self.wait(&volume, "ready");
        (volume, disk)
    }

    fn pull(&mut self, volume: &Volume, disk: &mut Disk) {
        self.lab.detach_settled(disk).unwrap();
        self.wait(volume, "lost");
    }

    /// Serves and withdraws one volume, and serves one whose disk is pulled and comes back.
    fn come_and_go(&mut self) -> [(Volume, Disk); 2] {
        let gone = self.serve();
        self.withdraw(&gone.0);
        let (back, mut disk) = self.serve();
        self.pull(&back, &mut disk);
        self.lab.attach_settled(&mut disk).unwrap();
        self.wait(&back, "ready");
        [gone, (back, disk)]
    }

    /// Waits until these volumes rest, and stops the daemon. Writes that nobody waits for (state, projection) follow
    /// an answer, so the daemon may die at such a write even while it stops. Then it must finish in another run.
    fn stop(&mut self, rests: &[(&Volume, &str)]) {
        for _ in 0..5 {
            for (volume, state) in rests {
                self.wait(volume, state);
            }
            // If the daemon is dead already, the signal fails.
            let _ = self.attachd.signal(Signal::TERM);
            let status = self.attachd.wait_exit(SOON).unwrap();
            if status.success() {
                return;
            }
            assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "{status}\n{}", self.attachd.stderr_text());
            self.deaths += 1;
            self.attachd = start(&self.lab);
        }
        panic!("the daemon dies again and again\n{}", self.attachd.stderr_text());
    }

    /// Returns everything durable and visible once these volumes rest, with their names in the story instead of their
    /// ids.
    fn end(mut self, rests: &[(&Volume, &str)], names: &[(&Volume, &str)]) -> (String, u32) {
        self.stop(rests);
        let mut end = String::new();
        for query in [
            "SELECT volume_id, vm_id, state, reason_code, sealed_by FROM intents ORDER BY 1",
            "SELECT volume_id, event, count(*) FROM timeline WHERE event IN ('sealed', 'unsealed', 'withdrawn') GROUP BY 1, 2",
            "SELECT volume_id, device_path, size_bytes FROM mappings ORDER BY 1",
            "SELECT volume_uuid, device_path, size, linux_state FROM device_mappings ORDER BY 1",
            "SELECT volume_id, export_name, status FROM nbd_exports ORDER BY 1",
            "SELECT count(*) FROM changed",
            "SELECT count(*) FROM set_aside",
            "PRAGMA integrity_check",
        ] {
            let output = Command::new("sqlite3").args(["/var/lib/attachd/attachd.db", query]).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            writeln!(end, "{query}\n{}", String::from_utf8(output.stdout).unwrap()).unwrap();
        }
        for (what, folder) in [("claim", CLAIMS), ("export", EXPORTS), ("section", FOLDER)] {
            for (name, content) in listing(folder) {
                writeln!(end, "{what} {name} {}", content.trim()).unwrap();
            }
        }
        for (volume, name) in names {
            end = end.replace(&volume.id, name).replace(&volume.serial, &format!("{name}-serial"));
        }
        // Ids are random, so the order of rows is too.
        let mut lines: Vec<&str> = end.lines().collect();
        lines.sort_unstable();
        (lines.join("\n"), self.deaths)
    }
}

fn listing(folder: &str) -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: &Path| {
        fs::read_link(path).map(|target| target.display().to_string()).or_else(|_| fs::read_to_string(path)).unwrap()
    };
    entries.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), read(&path))).collect()
}

/// A story with some of everything: one volume served, one withdrawn, one whose disk is pulled, one whose disk is
/// pulled and comes back, and one that waits.
fn tell(kill_at: Option<&str>) -> (String, u32, Vec<String>) {
    let mut story = Story::begin(Kind::Nbdkit, kill_at);
    story.step("start", |api| api.get("/api/v1/health").map(drop));
    let (served, _served_disk) = story.serve();
    let waiting = story.intend();
    let [(gone, _gone_disk), (back, _back_disk)] = story.come_and_go();
    let (lost, mut lost_disk) = story.serve();
    story.pull(&lost, &mut lost_disk);
    let rests = [(&served, "ready"), (&waiting, "waiting"), (&back, "ready"), (&lost, "lost")];
    let names = [(&served, "served"), (&waiting, "waiting"), (&gone, "gone"), (&back, "back"), (&lost, "lost")];
    told_of(story, &rests, &names)
}

/// The special cases of nbd-server: one volume waits, one is served and withdrawn, and one disk is pulled and comes
/// back.
fn tell_of_nbd_server(kill_at: Option<&str>) -> (String, u32, Vec<String>) {
    let mut story = Story::begin(Kind::NbdServer, kill_at);
    story.step("start", |api| api.get("/api/v1/health").map(drop));
    let waiting = story.intend();
    let [(gone, _gone_disk), (back, _back_disk)] = story.come_and_go();
    let rests = [(&waiting, "waiting"), (&back, "ready")];
    told_of(story, &rests, &[(&waiting, "waiting"), (&gone, "gone"), (&back, "back")])
}

/// Three sealed volumes: one stays sealed, one is unsealed, one is released.
fn tell_of_seals(kill_at: Option<&str>) -> (String, u32, Vec<String>) {
    let mut story = Story::begin(Kind::Nbdkit, kill_at);
    story.step("start", |api| api.get("/api/v1/health").map(drop));
    let [(kept, _first), (given, _second), (gone, _third)] = [(); 3].map(|()| story.serve());
    story.before = fs::read_to_string(EFFECTS).unwrap_or_default().lines().count();
    for volume in [&kept, &given, &gone] {
        story.operate("seal", volume);
    }
    story.operate("unseal", &given);
    story.wait(&given, "ready");
    story.operate("release", &gone);
    let rests = [(&kept, "detaching"), (&given, "ready")];
    told_of(story, &rests, &[(&kept, "kept"), (&given, "given"), (&gone, "gone")])
}

/// Returns the end of a story, how often the daemon was killed, and the points it passed.
fn told_of(story: Story, rests: &[(&Volume, &str)], names: &[(&Volume, &str)]) -> (String, u32, Vec<String>) {
    let before = story.before;
    let (end, deaths) = story.end(rests, names);
    let passed = fs::read_to_string(EFFECTS).unwrap().lines().skip(before).map(str::to_owned).collect();
    (end, deaths, passed)
}

type Tell = fn(Option<&str>) -> (String, u32, Vec<String>);

/// Tells a story in a thread of its own, because each lab needs one.
fn told(tell: Tell, kill_at: Option<String>) -> (String, u32, Vec<String>) {
    let point = kill_at.clone();
    let story = std::thread::spawn(move || tell(kill_at.as_deref()));
    story.join().unwrap_or_else(|_| panic!("the story above, killed at {point:?}, did not come to its end"))
}

/// Kills at every point of the story that `concerns` selects, and compares the ends.
fn killed_at_each_point(tell: Tell, concerns: impl Fn(&str) -> bool, names: &[&str]) {
    let (end, deaths, passed) = told(tell, None);
    println!("the undisturbed end:\n{end}\n");
    assert_eq!(deaths, 0);
    let mut killed: BTreeMap<String, u32> = BTreeMap::new();
    for point in passed.iter().filter(|point| concerns(point)) {
        let name = point.rsplit_once(':').unwrap().0.to_owned();
        let (disturbed, deaths, _) = told(tell, Some(point.clone()));
        assert_eq!(disturbed, end, "killed at {point}");
        *killed.entry(name).or_default() += deaths;
    }
    println!("{} points, killed: {killed:#?}", passed.len());
    for name in names {
        for side in ["before", "after"] {
            assert!(
                killed.get(&format!("{side}:{name}")).is_some_and(|deaths| *deaths > 0),
                "never killed {side} {name}"
            );
        }
    }
    assert_eq!(killed.len(), 2 * names.len(), "an effect this test does not know");
}

#[test]
fn killed_before_and_after_every_effect_the_end_is_the_same() {
    let names = [
        "answer",
        "claim.remove",
        "claim.write",
        "commit.followed",
        "commit.intent",
        "commit.mapping",
        "commit.projection",
        "commit.state",
        "commit.withdrawal",
        "link.make",
        "link.remove",
    ];
    killed_at_each_point(tell, |_| true, &names);
}

/// Invariant 16. The compared end contains the story steps too.
#[test]
fn killed_before_and_after_every_effect_a_sealed_volume_is_not_served_and_no_step_is_lost() {
    let names = [
        "answer",
        "claim.remove",
        "commit.followed",
        "commit.projection",
        "commit.seal",
        "commit.state",
        "commit.unseal",
        "commit.withdrawal",
        "link.make",
        "link.remove",
    ];
    killed_at_each_point(tell_of_seals, |_| true, &names);
}

/// The other effects are the same as with nbdkit.
#[test]
fn killed_before_and_after_every_change_to_nbd_servers_files_the_end_is_the_same() {
    let names = ["link.make", "link.remove", "section.make", "section.remove"];
    let concerns = |point: &str| point.contains(":link.") || point.contains(":section.");
    killed_at_each_point(tell_of_nbd_server, concerns, &names);
}

/// As after an upgrade to an attachd that writes its sections in another way.
#[test]
fn a_served_export_with_a_section_of_another_version_gets_a_new_section_and_is_served() {
    let lab = Lab::new();
    let _server = signalled(&lab);
    let _helper = Helper::start();
    let mut attachd = start(&lab);
    let (volume, _disk) = served(&lab, &attachd.api());
    attachd.kill9().unwrap();
    let section = format!("{FOLDER}/{}.conf", volume.export());
    let ours = fs::read_to_string(&section).unwrap();
    fs::write(&section, ours.replace("fua = true\n", "")).unwrap();
    let attachd = start(&lab);
    wait(&attachd.api(), &volume, "ready");
    assert_eq!(fs::read_to_string(&section).unwrap(), ours);
}

/// At that start attachd does not know what is published. The possible export is removed by its name.
#[test]
fn an_export_that_a_start_cannot_list_is_removed_when_its_disk_is_gone() {
    let (lab, mut attachd, api) = up();
    let (volume, mut disk) = served(&lab, &api);
    attachd.kill9().unwrap();
    disk.detach().unwrap();
    fs::set_permissions(EXPORTS, fs::Permissions::from_mode(0o311)).unwrap();
    let attachd = start(&lab);
    wait(&attachd.api(), &volume, "lost");
    let link = format!("{EXPORTS}/{}", volume.export());
    assert!(fs::symlink_metadata(link).is_err(), "it is still offered");
}

/// Invariant 2: an accepted intent survives a death right after the answer.
#[test]
fn an_answered_intent_survives_the_death_right_after_its_answer() {
    let (lab, mut attachd, api) = up();
    let volume = lab.volume();
    intend(&api, &volume);
    attachd.kill9().unwrap();
    let attachd = start(&lab);
    let mut disk = lab.disk(&volume.serial, MIB).unwrap();
    disk.attach().unwrap();
    wait(&attachd.api(), &volume, "ready");
}

/// Invariant 2, power loss: the row, then the claim, then its folder are synced before the answer is written.
#[test]
fn the_row_and_the_claim_are_synced_before_the_answer() {
    let lab = with_nbdkit();
    let log = lab.dir().join("strace");
    let calls = "trace=openat,fsync,fdatasync,write,sendto,sendmsg,writev,pwrite64";
    let options = AttachdOptions {
        wrapper: ["strace", "-f", "-y", "-s", "64", "-e", calls, "-o", log.to_str().unwrap()]
            .map(str::to_owned)
            .to_vec(),
        ..Default::default()
    };
    let mut attachd = lab.attachd_start(bin(), &options).unwrap();
    let volume = lab.volume();
    intend(&attachd.api(), &volume);
    attachd.terminate().unwrap();
    let text = fs::read_to_string(&log).unwrap();
    let after = |from: usize, what: &str, line: &dyn Fn(&str) -> bool| {
        let found = text.lines().skip(from).position(line);
        let mut at = from + found.unwrap_or_else(|| panic!("no {what} after line {from} of\n{text}"));
        let begun = text.lines().nth(at).unwrap();
        if begun.contains("<unfinished") {
            // Another thread's call was printed in between, so the line that reports the end of this call counts.
            let thread = begun.split_whitespace().next().unwrap();
            let resumed = |line: &str| line.starts_with(thread) && line.contains("resumed>");
            at += text.lines().skip(at).position(resumed).unwrap();
        }
        println!("{:>4} {what}: {}", at + 1, text.lines().nth(at).unwrap());
        at
    };
    let row = after(0, "row in the log", &|line| line.contains("pwrite64") && line.contains("attachd.db-wal"));
    // This is the claim of the intent; an earlier sync belongs to the migration.
    let claim = after(row, "claim made", &|line| line.contains("openat") && line.contains(&volume.serial));
    let synced_row = text.lines().take(claim).collect::<Vec<_>>();
    let last_write =
        synced_row.iter().rposition(|line| line.contains("pwrite64") && line.contains("attachd.db-wal")).unwrap();
    let synced = after(last_write, "row synced", &|line| line.contains("sync(") && line.contains("attachd.db-wal"));
    assert!(synced < claim, "the row is synced before the claim is made");
    // udev's rules test for the name, and the folder's sync makes names durable.
    let folder = after(claim, "folder synced", &|line| line.contains("fsync(") && line.contains("/claims>"));
    let answer = after(0, "answer", &|line| line.contains("HTTP/1.1 201"));
    assert!(folder < answer, "the claim's folder is synced before the answer");
}
