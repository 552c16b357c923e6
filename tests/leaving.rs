//! No volume is withdrawn while a client is connected, whatever the volume's state and whatever port or socket the
//! client uses.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::*;
use lab::cable::{Cable, NEAR};
use lab::child::Proc;
use lab::nbd::NbdClient;
use lab::people::{self, ATTACHD};
use lab::{Api, Disk, DiskOptions, Lab, Volume};
use rustix::net::sockopt;
use serde_json::{Value, json};

fn path(volume: &Volume) -> String {
    format!("/api/v1/intents/{}", volume.id)
}

fn by_force(volume: &Volume) -> String {
    format!("{}?force=true", path(volume))
}

/// Returns the refusal of an unforced withdrawal.
fn refused(api: &Api, volume: &Volume) -> Value {
    api.delete(&path(volume)).unwrap().expect(409).unwrap()
}

fn run(program: &str, arguments: &[&Path]) {
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

/// A client that is connected and writes while its volume is in some state.
struct Busy {
    volume: Volume,
    client: NbdClient,
}

impl Busy {
    fn new(lab: &Lab, volume: Volume) -> Self {
        let client = lab.nbd_client(&volume.export()).unwrap();
        Self { volume, client }
    }

    /// Checks invariant 16, and that the check has an effect: the client can still write.
    fn keeps_its_volume(mut self, api: &Api, state: &str) {
        wait(api, &self.volume, state);
        let why = refused(api, &self.volume);
        let (code, details) = (&why["code"], &why["details"]);
        assert_eq!(
            (code, &details["clients"]),
            (&json!("CLIENTS_CONNECTED"), &json!([self.client.address().unwrap()]))
        );
        assert_eq!(details["clients_exact"], true, "{why:#}");
        self.client.write(0, &[7; 4096]).unwrap();
        assert_eq!(show(api, &self.volume)["state"], state, "a refusal changes nothing");

        let mut events = api.events().unwrap();
        let forced = api.delete(&by_force(&self.volume)).unwrap().expect(200).unwrap();
        assert_eq!(forced["clients_still_connected"], details["clients"]);
        assert_eq!(show(api, &self.volume)["state"], "detaching");
        self.client.write(0, &[8; 4096]).unwrap();
        drop(self.client);
        events.wait_for(|event| event["event"] == "withdrawn", SOON).unwrap();
    }
}

/// Makes two served volumes: one with a client, one without.
fn busy_and_idle(lab: &Lab, api: &Api) -> ((Busy, Disk), (Volume, Disk)) {
    let (volume, disk) = served(lab, api);
    ((Busy::new(lab, volume), disk), served(lab, api))
}

#[test]
fn a_volume_that_is_refused_for_a_second_disk_is_not_withdrawn_from_under_its_client() {
    let (lab, _attachd, api) = up();
    let ((busy, _disk), (idle, _other)) = busy_and_idle(&lab, &api);
    let _twins = [&busy.volume, &idle].map(|volume| {
        let options = DiskOptions { seed: Some(7), ..Default::default() };
        let mut twin = lab.disk_with(&volume.serial, MIB, options).unwrap();
        twin.attach().unwrap();
        wait(&api, volume, "refused");
        twin
    });
    withdraw(&api, &idle);
    busy.keeps_its_volume(&api, "refused");
}

#[test]
fn a_volume_that_the_host_has_mounted_is_not_withdrawn_from_under_its_client() {
    let (lab, _attachd, api) = up();
    let with_files = || {
        let volume = lab.volume();
        let disk = lab.settled_disk(&volume.serial, 8 * MIB).unwrap();
        run("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), &disk.node()]);
        intend(&api, &volume);
        wait(&api, &volume, "ready");
        (volume, disk)
    };
    let ((volume, disk), (idle, other)) = (with_files(), with_files());
    let busy = Busy::new(&lab, volume);
    let places = [&disk, &other].map(|disk| {
        let place = lab.dir().join(disk.serial());
        fs::create_dir(&place).unwrap();
        run("mount", &[&disk.node(), &place]);
        place
    });
    resync(&api);
    wait(&api, &idle, "refused");
    withdraw(&api, &idle);
    busy.keeps_its_volume(&api, "refused");
    for place in &places {
        run("umount", &[place]);
    }
}

/// The server still has the descriptor of a disk that is not the volume's any more.
#[test]
fn a_volume_that_is_lost_is_not_withdrawn_from_under_its_client() {
    let (lab, _attachd, api) = up();
    let ((busy, disk), (idle, other)) = busy_and_idle(&lab, &api);
    for disk in [&disk, &other] {
        // The kernel shows the file's present name, and so the serial of another disk.
        let renamed = disk.file().with_file_name(format!("{}.img", lab.volume().serial));
        fs::rename(disk.file(), renamed).unwrap();
    }
    resync(&api);
    wait(&api, &idle, "lost");
    withdraw(&api, &idle);
    busy.keeps_its_volume(&api, "lost");
}

/// Starts another nbdkit over the same exports, as the same user.
fn another_nbdkit(listen: &[&str]) -> Proc {
    let pid_file = "/run/attachd-nbdkit/another.pid";
    let setpriv = people::run_as(people::NBD);
    let mut command = Command::new(&setpriv[0]);
    command.args(&setpriv[1..]).args(["nbdkit", "-f", "-P", pid_file]).args(listen);
    command.args(["file", "dir=/run/attachd/exports"]).current_dir("/").stdin(Stdio::null());
    let nbdkit = Proc::spawn("nbdkit", &mut command).unwrap();
    listens(pid_file);
    nbdkit
}

/// Waits until an nbdkit has written that it listens.
fn listens(pid_file: &str) {
    let begun = Instant::now();
    while fs::read_to_string(pid_file).unwrap_or_default().is_empty() {
        assert!(begun.elapsed() < SOON);
        std::thread::yield_now();
    }
}

#[test]
fn a_client_on_another_port_of_the_servers_is_connected() {
    let (lab, _attachd, api) = up();
    let _nbdkit = another_nbdkit(&["-i", "127.0.0.1", "-p", "10810"]);
    let (volume, _disk) = served(&lab, &api);
    let (idle, _other) = served(&lab, &api);
    let client = NbdClient::connect("127.0.0.1:10810", &volume.export()).unwrap();
    let why = refused(&api, &volume);
    assert_eq!((&why["code"], &why["details"]["clients_exact"]), (&json!("CLIENTS_CONNECTED"), &json!(true)));
    assert_eq!(why["details"]["clients"], json!([client.address().unwrap()]));
    withdraw(&api, &idle);
    drop(client);
    withdrawn_in_the_end(&api, &volume);
}

#[test]
fn a_client_on_a_unix_socket_is_connected() {
    let (lab, _attachd, api) = up();
    let socket = PathBuf::from("/run/attachd-nbdkit/another.sock");
    let _nbdkit = another_nbdkit(&["-U", socket.to_str().unwrap()]);
    let (volume, _disk) = served(&lab, &api);
    let (idle, _other) = served(&lab, &api);
    let mut client = NbdClient::connect_unix(&socket, &volume.export()).unwrap();
    let why = refused(&api, &volume);
    assert_eq!(why["code"], "CLIENTS_CONNECTED");
    assert_eq!(why["details"]["clients"], json!([format!("a client on the Unix socket {}", socket.display())]));
    client.write(0, &[7; 4096]).unwrap();
    withdraw(&api, &idle);
    drop(client);
    withdrawn_in_the_end(&api, &volume);
}

/// Makes a listening socket as `attachd-nbdkit.socket` does, with a keep-alive of a second (the unit's is longer) or
/// without one.
fn held_port(port: u16, keep_alive: bool) -> OwnedFd {
    let socket = TcpListener::bind((NEAR, port)).unwrap();
    if keep_alive {
        sockopt::set_socket_keepalive(&socket, true).unwrap();
        sockopt::set_tcp_keepidle(&socket, Duration::from_secs(1)).unwrap();
        sockopt::set_tcp_keepintvl(&socket, Duration::from_secs(1)).unwrap();
        sockopt::set_tcp_keepcnt(&socket, 1).unwrap();
    }
    socket.into()
}

/// Starts an nbdkit with a listening socket, as systemd does.
fn nbdkit_on(held: OwnedFd, pid_file: &str) -> Proc {
    let script = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\" 3<&0 0</dev/null";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).args(people::run_as(people::NBD));
    command.args(["nbdkit", "-f", "-P", pid_file, "file", "dir=/run/attachd/exports"]);
    let nbdkit = Proc::spawn("nbdkit", command.current_dir("/").stdin(held)).unwrap();
    listens(pid_file);
    nbdkit
}

/// Such a client never sends anything.
#[test]
fn a_client_whose_host_has_vanished_is_gone_after_the_keep_alive_time() {
    let (lab, _attachd, api) = up();
    let cable = Cable::new().unwrap();
    let _servers = [(10_811, true), (10_812, false)]
        .map(|(port, keep_alive)| nbdkit_on(held_port(port, keep_alive), &format!("/run/attachd-nbdkit/{port}.pid")));
    let [(noticed, _disk), (control, _other)] = [(); 2].map(|()| served(&lab, &api));
    let _clients = [(10_811, &noticed), (10_812, &control)].map(|(port, volume)| {
        cable.from_there(|| NbdClient::connect(&format!("{NEAR}:{port}"), &volume.export())).unwrap()
    });
    cable.cut().unwrap();
    for volume in [&noticed, &control] {
        assert_eq!(refused(&api, volume)["code"], "CLIENTS_CONNECTED");
    }
    let mut events = api.events().unwrap();
    for volume in [&control, &noticed] {
        api.delete(&by_force(volume)).unwrap().expect(200).unwrap();
    }
    let gone = events.wait_for(|event| event["event"] == "withdrawn", SOON).unwrap();
    assert_eq!(gone["volume_id"], noticed.id);
    let still = show(&api, &control);
    assert_eq!(still["state"], "detaching", "the control: without it the client stays connected");
}

/// The shipped socket units have a keep-alive: systemd sets it on the listening socket, and each connection inherits
/// it.
#[test]
fn each_shipped_port_has_a_keep_alive_of_a_minute_at_most() {
    for unit in [include_str!("../systemd/attachd-nbdkit.socket"), include_str!("../systemd/attachd-nbd-server.socket")]
    {
        let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap();
        let number = |key: &str| value(key).trim_end_matches('s').parse::<u32>().unwrap();
        assert_eq!(value("KeepAlive"), "yes");
        let longest = number("KeepAliveTimeSec") + number("KeepAliveIntervalSec") * number("KeepAliveProbes");
        assert!(longest <= 60, "{longest} s");
    }
}

/// Repeats the withdrawal, because a server may need a moment to close its last client's files.
fn withdrawn_in_the_end(api: &Api, volume: &Volume) {
    let begun = Instant::now();
    while api.delete(&path(volume)).unwrap().status != 200 {
        assert!(begun.elapsed() < SOON);
    }
}

/// Invariant 11: a helper that was silent once is not reported as silent for ever.
#[test]
fn a_helper_that_is_back_is_reported_without_a_request_to_it() {
    let (lab, _attachd, api, helper) = up_with_helper();
    let (volume, _disk) = served(&lab, &api);
    drop(helper);
    assert_eq!(refused(&api, &volume)["code"], "CLIENTS_UNKNOWN");
    assert_eq!(health(&api)["helper"]["state"], "silent", "the control");
    let _helper = Helper::start();
    let begun = Instant::now();
    while health(&api)["helper"]["state"] != "answers" {
        assert!(begun.elapsed() < SOON);
        std::thread::yield_now();
    }
    assert_eq!(health(&api)["problems"], json!([]));
    withdraw(&api, &volume);
}

/// The user is in the message and in a field, for each request that changes something.
#[test]
fn the_requesting_user_is_in_the_journal_and_in_the_story() {
    let (lab, attachd, api) = up();
    let somebody = api.by(ATTACHD.id);
    let (volume, _disk) = served(&lab, &api);
    let (forced, _other) = served(&lab, &api);
    let client = lab.nbd_client(&forced.export()).unwrap();
    let mut events = somebody.events().unwrap();
    withdraw(&somebody, &volume);
    somebody.delete(&by_force(&forced)).unwrap().expect(200).unwrap();
    resync(&somebody);
    let by = |what: &str| format!("{what} by uid {}", ATTACHD.id);
    let story = show(&api, &forced)["timeline"].to_string();
    assert!(story.contains(&by("withdrawn by force")) && story.contains("\"by uid 0\""), "{story}");
    drop(client);
    let gone = |event: &Value| event["event"] == "withdrawn" && event["volume_id"] == forced.id;
    let gone = events.wait_for(gone, SOON).unwrap();
    assert_eq!(gone["detail"], by("as asked for before, by force"));

    let said = attachd.stderr_text();
    let field = format!("UID={}", ATTACHD.id);
    let entry = |volume: &str, words: &str| said.lines().find(|line| line.contains(volume) && line.contains(words));
    for (volume, words) in [
        (&*volume.id, by("withdrawn")),
        (&volume.id, by("revoked for the withdrawal asked for")),
        (&forced.id, by("withdrawn by force")),
        (&forced.id, by("withdrawn as asked for before, by force")),
        ("", by("a resync was asked for")),
    ] {
        let line = entry(volume, &words).unwrap_or_else(|| panic!("{words}: {said}"));
        assert!(line.contains(&field), "{line}");
    }
    let accepted = entry(&volume.id, "intent accepted by uid 0").unwrap();
    assert!(accepted.contains("UID=0"), "another's request is another's: {accepted}");
    assert!(!entry(&volume.id, "INFO ready").unwrap().contains("UID="), "what nobody asked for is nobody's");
}
