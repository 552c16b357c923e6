//! nbd-server in place of nbdkit: the whole daemon with the real servers, in both modes.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::*;
use lab::nbd::{self, FLAG_SEND_FLUSH, FLAG_SEND_FUA, REP_ACK, REP_ERR_POLICY, REP_ERR_UNKNOWN};
use lab::nbd_server::{FOLDER, Installed, MAIN, MAIN_SOCKET, NbdServer, NbdServerPerConnection, PID_FILE, Release};
use lab::{Api, Attachd, AttachdOptions, Disk, Lab, Volume};
use serde_json::{Value, json};

const ADDRESS: &str = "127.0.0.1:10809";
const LINKS: &str = "/run/attachd/exports";

enum Server {
    Signalled(NbdServer),
    PerConnection { _listens: NbdServerPerConnection },
}

/// A host on which nbd-server serves the exports.
struct Host {
    api: Api,
    attachd: Attachd,
    helper: Helper,
    server: Server,
    lab: Lab,
}

/// The three combinations that work: Debian 12's server dies of a signal.
const WAYS: [(Release, &str); 3] =
    [(Release::Trixie, "signal"), (Release::Trixie, "socket"), (Release::Bookworm, "socket")];

fn config(installed: &Installed, mode: &str) -> String {
    let version = installed.package_version().unwrap();
    let version = version.split_once(':').map_or(version.as_str(), |(_, rest)| rest);
    let main = if mode == "signal" { MAIN } else { MAIN_SOCKET };
    format!(
        "{CONFIG}[export]\nbackend = \"nbd-server\"\nmode = \"{mode}\"\nnbd_server_version = \"{version}\"\n\
         main_file = \"{main}\"\n"
    )
}

/// Writes the main files of both modes, as shipped.
fn main_files() {
    fs::write(MAIN, include_str!("../packaging/nbd-server/signal.conf")).unwrap();
    fs::write(MAIN_SOCKET, include_str!("../packaging/nbd-server/socket.conf")).unwrap();
}

impl Host {
    fn new(release: Release, mode: &str) -> Self {
        let lab = Lab::new();
        let installed = Installed::new(&lab, release).unwrap();
        Self::with(lab, installed, mode)
    }

    fn with(lab: Lab, installed: Installed, mode: &str) -> Self {
        main_files();
        lab.attachd_config(&config(&installed, mode)).unwrap();
        let server = if mode == "signal" {
            let mut server = NbdServer::new(installed);
            server.start().unwrap();
            Server::Signalled(server)
        } else {
            Server::PerConnection { _listens: NbdServerPerConnection::start(installed).unwrap() }
        };
        let helper = Helper::start();
        let attachd = start(&lab);
        Self { api: attachd.api(), attachd, helper, server, lab }
    }

    fn signalled() -> Self {
        Self::new(Release::Trixie, "signal")
    }

    /// Returns the main process in signal mode.
    fn server(&mut self) -> &mut NbdServer {
        match &mut self.server {
            Server::Signalled(server) => server,
            Server::PerConnection { .. } => panic!("there is no main process"),
        }
    }

    fn restart_attachd(&mut self) {
        self.attachd.terminate().unwrap();
        self.start_attachd();
    }

    fn start_attachd(&mut self) {
        self.attachd = start(&self.lab);
        self.api = self.attachd.api();
    }

    fn served(&self) -> (Volume, Disk) {
        served(&self.lab, &self.api)
    }

    fn bytes_are_right(&self, volume: &Volume, disk: &Disk) {
        self.lab.nbdcopy_equals(&volume.export(), disk.file()).unwrap();
    }

    /// Returns what the server reports about an export, together with attachd's view.
    fn checked(&self, volume: &Volume) -> Value {
        let list = self.api.get("/api/v1/exports?check=true").unwrap().expect(200).unwrap();
        let all = list["checked"].as_array().unwrap().clone();
        all.into_iter().find(|export| export["name"] == volume.export()).unwrap_or_default()
    }
}

/// Runs a test with each server and mode. A lab belongs to its thread.
fn in_each_way(test: fn(Host)) {
    for (release, mode) in WAYS {
        println!("{release:?}, {mode}");
        thread::spawn(move || test(Host::new(release, mode))).join().unwrap();
    }
}

fn section(volume: &Volume) -> PathBuf {
    Path::new(FOLDER).join(format!("{}.conf", volume.export()))
}

fn go(volume: &Volume) -> u32 {
    nbd::go(ADDRESS, &volume.export()).unwrap()
}

fn problem(api: &Api, code: &str) -> Option<Value> {
    health(api)["problems"].as_array().unwrap().iter().find(|problem| problem["code"] == code).cloned()
}

/// Waits until health has or no longer has a problem. No event reports a change in health.
fn wait_problem(api: &Api, code: &str, there: bool) -> Value {
    let begun = Instant::now();
    loop {
        let problem = problem(api, code);
        if problem.is_some() == there {
            return problem.unwrap_or_default();
        }
        assert!(begun.elapsed() < SOON, "{code}: {problem:?}");
        thread::yield_now();
    }
}

#[test]
fn a_volume_is_served_byte_for_byte_durably_and_revoked_at_once_in_each_mode() {
    in_each_way(|host| {
        let (volume, disk) = host.served();
        host.bytes_are_right(&volume, &disk);
        let flags = lab::NbdClient::connect(ADDRESS, &volume.export()).unwrap().flags();
        let durable = FLAG_SEND_FLUSH | FLAG_SEND_FUA;
        assert_eq!(flags & durable, durable, "FLUSH and FUA: {flags:#b}");
        let checked = host.checked(&volume);
        let facts = ["wanted", "published", "listed", "openable", "stale"].map(|fact| checked[fact].clone());
        assert_eq!(facts, [json!(true), json!(true), json!(true), json!(true), json!(false)], "{checked}");

        // The disk is still attached.
        let (neighbour, other) = host.served();
        withdraw(&host.api, &volume);
        assert_ne!(go(&volume), REP_ACK);
        host.bytes_are_right(&neighbour, &other);
        // The volume is announced again: what the server remembers of it does no harm.
        intend(&host.api, &volume);
        wait(&host.api, &volume, "ready");
        host.bytes_are_right(&volume, &disk);
        assert_eq!(health(&host.api)["status"], "healthy", "{:#}", health(&host.api));
    });
}

#[test]
fn a_pulled_disk_is_refused_and_served_again_when_it_is_back_in_each_mode() {
    in_each_way(|host| {
        let (volume, mut disk) = host.served();
        disk.detach().unwrap();
        wait(&host.api, &volume, "lost");
        assert_eq!(go(&volume), REP_ERR_POLICY);
        disk.attach().unwrap();
        wait(&host.api, &volume, "ready");
        host.bytes_are_right(&volume, &disk);
    });
}

/// The server remembers the export, and the link to a disk of this serial exists. What refuses is the absence of
/// attachd's link.
#[test]
fn an_export_is_revoked_while_its_disk_stays_in_each_mode() {
    in_each_way(|host| {
        let (volume, disk) = host.served();
        let mut twin = host.lab.disk(&volume.serial, MIB).unwrap();
        host.lab.attach_settled(&mut twin).unwrap();
        wait(&host.api, &volume, "refused");
        assert!(volume.link().exists() && disk.is_attached());
        assert_eq!((nbd::info(ADDRESS, &volume.export()).unwrap(), go(&volume)), (REP_ACK, REP_ERR_POLICY));
        twin.detach().unwrap();
        wait(&host.api, &volume, "ready");
    });
}

/// Exports outlive the daemon, and the next daemon proves them again.
#[test]
fn a_restart_of_the_daemon_changes_nothing_for_clients_in_each_mode() {
    in_each_way(|mut host| {
        let (volume, disk) = host.served();
        let mut client = host.lab.nbd_client(&volume.export()).unwrap();
        host.attachd.kill9().unwrap();
        assert_eq!(go(&volume), REP_ACK);
        host.start_attachd();
        wait(&host.api, &volume, "ready");
        host.bytes_are_right(&volume, &disk);
        client.read(0, 512).unwrap();
        assert!(!story(&show(&host.api, &volume)).contains(&"revoked".to_owned()));
    });
}

#[test]
fn debian_12s_server_is_not_signalled_and_the_alternative_is_named() {
    let lab = Lab::new();
    let installed = Installed::new(&lab, Release::Bookworm).unwrap();
    lab.attachd_config(&config(&installed, "signal")).unwrap();
    let options = AttachdOptions::default();
    let refused = lab.attachd_start(bin(), &options).unwrap_err().to_string();
    let said = format!("{refused}{}", fs::read_to_string(lab.dir().join("attachd.log")).unwrap_or_default());
    assert!(said.contains("attachd.toml:5:8: [export] nbd-server 3.24-1.1 dies of the signal"), "{said}");
    assert!(said.contains("mode = \"socket\""), "{said}");

    lab.attachd_config(&config(&installed, "auto")).unwrap();
    let attachd = lab.attachd_start(bin(), &options).unwrap();
    // Just after the start the state of the server is unknown.
    let begun = Instant::now();
    let backend = loop {
        let backend = health(&attachd.api())["backend"].clone();
        if backend["state"] != "unknown" {
            break backend;
        }
        assert!(begun.elapsed() < SOON, "{backend}");
    };
    assert_eq!((&backend["name"], &backend["mode"]), (&json!("nbd-server"), &json!("socket")), "{backend}");
    assert!(backend["because"].as_str().unwrap().contains("3.24"), "{backend}");
    assert_eq!(backend["state"], "down", "nothing holds the port");
}

/// nbdkit's unit is tested in `tests/silent.rs`.
#[test]
fn hints_name_the_unit_of_the_server_that_is_configured() {
    let ways = [
        (Release::Trixie, "signal", "attachd-nbd-server.service"),
        (Release::Bookworm, "socket", "attachd-nbd-server.socket"),
    ];
    let hints = |(release, mode, unit): (Release, &'static str, &'static str)| {
        let lab = Lab::new();
        let installed = Installed::new(&lab, release).unwrap();
        main_files();
        lab.attachd_config(&config(&installed, mode)).unwrap();
        // The server has not been started.
        let attachd = start(&lab);
        let api = attachd.api();
        let (volume, _disk) = attached(&lab, &api);
        let shown = wait_reason(&api, &volume, "BACKEND_DOWN");
        let health = health(&api);
        let problem = health["problems"].as_array().unwrap().iter().find(|problem| problem["code"] == "BACKEND_DOWN");
        for hint in [&shown["reason"]["hint"], &problem.unwrap()["hint"]] {
            let hint = hint.as_str().unwrap();
            assert!(hint.contains(&format!("`systemctl status {unit}`")) && !hint.contains("nbdkit"), "{mode}: {hint}");
        }
    };
    for way in ways {
        std::thread::spawn(move || hints(way)).join().unwrap();
    }
}

/// What the server remembers of a withdrawn volume is not served before the next disk is proven.
#[test]
fn a_volume_announced_again_is_refused_until_its_disk_is_proven_in_each_mode() {
    in_each_way(|host| {
        let (volume, disk) = host.served();
        withdraw(&host.api, &volume);
        for folder in [FOLDER, LINKS] {
            assert_eq!(fs::read_dir(folder).unwrap().count(), 0, "nothing is left over in {folder}");
        }
        let too_large = json!({ "volume_id": volume.id, "size_bytes": 2 * MIB });
        host.api.post("/api/v1/intents", &too_large).unwrap().expect(201).unwrap();
        wait(&host.api, &volume, "refused");
        // The server knows the name, but attachd's link does not exist, although the disk and its by-id link do.
        assert!(volume.link().exists());
        assert_eq!((nbd::info(ADDRESS, &volume.export()).unwrap(), go(&volume)), (REP_ACK, REP_ERR_POLICY));
        withdraw(&host.api, &volume);
        assert_ne!(go(&volume), REP_ACK);
        intend(&host.api, &volume);
        wait(&host.api, &volume, "ready");
        host.bytes_are_right(&volume, &disk);
    });
}

/// A section contains nothing that depends on the kind of disk.
#[test]
fn with_several_schemes_too_the_server_is_signalled_before_the_disk_comes() {
    let mut host = Host::signalled();
    let config = fs::read_to_string("/etc/attachd/attachd.toml").unwrap();
    host.lab.attachd_config(&config.replace("[\"loop\"]", "[\"loop\", \"virtio\", \"scsi\"]")).unwrap();
    host.restart_attachd();
    let volume = host.lab.volume();
    intend(&host.api, &volume);
    let begun = Instant::now();
    while nbd::info(ADDRESS, &volume.export()).unwrap() != REP_ACK {
        assert!(begun.elapsed() < SOON, "the server was not told");
        thread::yield_now();
    }
    assert_eq!(go(&volume), REP_ERR_POLICY);
    let mut disk = host.lab.disk(&volume.serial, MIB).unwrap();
    disk.attach().unwrap();
    wait(&host.api, &volume, "ready");
    host.bytes_are_right(&volume, &disk);
}

#[test]
fn health_reports_the_write_zeroes_defect() {
    let health = health(&Host::signalled().api);
    assert_eq!(health["remarks"].as_array().unwrap().len(), 1, "{health:#}");
    assert_eq!(health["remarks"][0]["code"], "WRITE_ZEROES");
    assert!(health["remarks"][0]["message"].as_str().unwrap().contains("64 MiB"));
}

/// A host has its own folder on a disk, with its own files in it. The sections in it lead to links that do not exist.
#[test]
fn sections_that_outlive_a_reboot_serve_no_unproven_disk() {
    let lab = Lab::new();
    let installed = Installed::new(&lab, Release::Trixie).unwrap();
    let (folder, on_disk) = ("/run/lab/conf.d", lab.dir().join("conf.d"));
    fs::create_dir(&on_disk).unwrap();
    installed.lay_in(&on_disk, Path::new(folder)).unwrap();
    let mut host = Host::with(lab, installed, "signal");
    std::os::unix::fs::chown(folder, Some(lab::people::ATTACHD.id), None).unwrap();
    let foreign = Path::new(folder).join("own.conf");
    let own = "[own]\nexportname = /dev/null/own\nflush = true\n";
    fs::write(&foreign, own).unwrap();
    let main = fs::read_to_string(MAIN).unwrap().replace(FOLDER, folder);
    fs::write(MAIN, main).unwrap();
    let config = fs::read_to_string("/etc/attachd/attachd.toml").unwrap();
    host.lab.attachd_config(&format!("{config}folder = \"{folder}\"\n")).unwrap();
    host.server().restart().unwrap();
    host.restart_attachd();
    let (volume, disk) = host.served();
    let (gone, _its) = host.served();
    host.bytes_are_right(&volume, &disk);
    withdraw(&host.api, &gone);
    assert_eq!(fs::read_to_string(&foreign).unwrap(), own);

    // A reboot removes the links, and the server is up before attachd.
    host.attachd.terminate().unwrap();
    host.server().restart().unwrap();
    assert_eq!(go(&volume), REP_ACK, "the control");
    fs::remove_file(Path::new(LINKS).join(volume.export())).unwrap();
    host.server().restart().unwrap();
    assert_eq!((nbd::info(ADDRESS, &volume.export()).unwrap(), go(&volume)), (REP_ACK, REP_ERR_POLICY));
    host.start_attachd();
    wait(&host.api, &volume, "ready");
    host.bytes_are_right(&volume, &disk);
}

/// One bad file must not affect what is served, and the server is not signalled while it is there.
#[test]
fn a_foreign_bad_file_stops_only_new_exports_until_it_is_corrected() {
    let host = Host::signalled();
    let (neighbour, other) = host.served();
    let files: [(&str, &[u8]); 5] = [
        ("malformed", b"[x]\nno equals sign\n"),
        ("half-written", b"[x]\nexportname = /dev/x\nreadonly = fal"),
        ("no exportname", b"[x]\nreadonly = false\n"),
        ("generic", b"[generic]\nuser = root\n"),
        ("unreadable", b"[x]\nexportname = /dev/x\n"),
    ];
    for (what, bytes) in files {
        println!("{what}");
        let file = Path::new(FOLDER).join("foreign.conf");
        fs::write(&file, bytes).unwrap();
        if what == "unreadable" {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        }
        let volume = host.lab.volume();
        intend(&host.api, &volume);
        let mut disk = host.lab.disk(&volume.serial, MIB).unwrap();
        disk.attach().unwrap();
        let shown = wait_reason(&host.api, &volume, "SERVER_FILES");
        let message = shown["reason"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("foreign.conf"), "{message}");
        let told = wait_problem(&host.api, "SERVER_FILES", true);
        assert!(told["message"].as_str().unwrap().contains("foreign.conf"), "{told}");
        host.bytes_are_right(&neighbour, &other);
        assert_eq!(fs::read(&file).unwrap(), bytes, "not touched");
        fs::remove_file(&file).unwrap();
        wait(&host.api, &volume, "ready");
        wait_problem(&host.api, "SERVER_FILES", false);
        host.bytes_are_right(&volume, &disk);
        withdraw(&host.api, &volume);
        disk.detach().unwrap();
    }
}

#[test]
fn foreign_files_and_duplicate_names_are_reported_and_left_alone() {
    let host = Host::signalled();
    let (volume, disk) = host.served();
    let foreign = "[somebody-elses]\nexportname = /dev/null\n";
    fs::write(Path::new(FOLDER).join("b.conf"), foreign).unwrap();
    fs::write(Path::new(FOLDER).join("c.conf"), foreign).unwrap();
    resync(&host.api);
    let told = problem(&host.api, "FOREIGN_EXPORTS").unwrap();
    assert!(told["message"].as_str().unwrap().contains("b.conf"), "{told}");
    let remarks = health(&host.api)["remarks"].to_string();
    assert!(remarks.contains("[somebody-elses] is in ") && remarks.contains("flush = true"), "{remarks}");
    host.bytes_are_right(&volume, &disk);
    assert_eq!(fs::read_to_string(Path::new(FOLDER).join("b.conf")).unwrap(), foreign);
}

#[test]
fn a_removed_section_or_link_is_made_again_by_a_resync() {
    let host = Host::signalled();
    let (volume, disk) = host.served();
    for file in [section(&volume), Path::new(LINKS).join(volume.export())] {
        fs::remove_file(&file).unwrap();
        resync(&host.api);
        wait(&host.api, &volume, "ready");
        assert!(file.exists());
        host.bytes_are_right(&volume, &disk);
    }
}

/// A server that has read the section serves its path, whatever attachd writes into the file later.
#[test]
fn a_changed_section_is_reported_and_left_alone_and_its_volume_waits_for_a_restart() {
    let mut host = Host::signalled();
    let (volume, disk) = host.served();
    let ours = fs::read_to_string(section(&volume)).unwrap();
    let changed = ours.replace(LINKS, "/dev/disk/by-id");
    fs::write(section(&volume), &changed).unwrap();
    resync(&host.api);
    let shown = wait_reason(&host.api, &volume, "EXPORT_FOLDER");
    assert!(shown["reason"]["message"].as_str().unwrap().contains("restart the NBD server"), "{shown:#}");
    let told = problem(&host.api, "FOREIGN_EXPORTS").unwrap();
    assert!(told["message"].as_str().unwrap().contains(&volume.export()), "{told}");
    assert_ne!(go(&volume), REP_ACK);
    assert_eq!(fs::read_to_string(section(&volume)).unwrap(), changed);

    fs::remove_file(section(&volume)).unwrap();
    host.server().restart().unwrap();
    wait(&host.api, &volume, "ready");
    assert_eq!(fs::read_to_string(section(&volume)).unwrap(), ours);
    host.bytes_are_right(&volume, &disk);
}

#[test]
fn a_server_that_is_killed_is_reported_and_its_exports_are_proven_again_when_it_is_back() {
    let mut host = Host::signalled();
    let (volume, disk) = host.served();
    // An export that the server remembers and that is not wanted.
    let (gone, _its) = host.served();
    withdraw(&host.api, &gone);
    let stale = host.checked(&gone);
    assert_eq!((&stale["stale"], &stale["openable"]), (&json!(true), &json!(false)), "{stale}");
    assert!(stale["clear"].as_str().unwrap().contains("restart"), "{stale}");

    host.server().kill().unwrap();
    let shown = host.api.wait_volume(&volume.id, "exporting", SOON).unwrap();
    assert_eq!(shown["reason"]["code"], "BACKEND_DOWN");
    // A disk that comes in the meantime waits for the server.
    let late = host.lab.volume();
    intend(&host.api, &late);
    let mut its = host.lab.disk(&late.serial, MIB).unwrap();
    its.attach().unwrap();
    wait(&host.api, &late, "exporting");
    host.server().start().unwrap();
    for (volume, disk) in [(&volume, &disk), (&late, &its)] {
        wait(&host.api, volume, "ready");
        host.bytes_are_right(volume, disk);
    }
    assert_eq!(host.checked(&gone), Value::Null, "forgotten");
}

#[test]
fn a_stale_or_wrong_pid_file_is_no_server_and_no_process_is_signalled() {
    let mut host = Host::signalled();
    let (volume, _disk) = host.served();
    host.server().kill().unwrap();
    wait(&host.api, &volume, "exporting");
    // The pid of this very test, which SIGHUP would end.
    fs::write(PID_FILE, format!("{}\n", std::process::id())).unwrap();
    let told = wait_problem(&host.api, "BACKEND_DOWN", true);
    let begun = Instant::now();
    while !health(&host.api)["backend"]["why"].as_str().unwrap_or_default().contains("not nbd-server") {
        assert!(begun.elapsed() < SOON, "{told}");
        thread::yield_now();
    }
    host.server().start().unwrap();
    wait(&host.api, &volume, "ready");
}

#[test]
fn a_missing_main_file_is_reported_and_no_signal_is_sent_until_it_is_back() {
    let host = Host::signalled();
    let (neighbour, other) = host.served();
    let main = fs::read(MAIN).unwrap();
    fs::remove_file(MAIN).unwrap();
    let volume = host.lab.volume();
    intend(&host.api, &volume);
    let mut disk = host.lab.disk(&volume.serial, MIB).unwrap();
    disk.attach().unwrap();
    let shown = wait_reason(&host.api, &volume, "SERVER_FILES");
    assert!(shown["reason"]["message"].as_str().unwrap().contains("signal.conf"));
    host.bytes_are_right(&neighbour, &other);
    fs::write(MAIN, main).unwrap();
    wait(&host.api, &volume, "ready");
}

/// The server reads everything when it starts, but attachd, which wrote during the start, cannot know that.
#[test]
fn a_server_that_dies_between_a_file_and_its_signal_serves_it_when_it_is_back() {
    let mut host = Host::signalled();
    let (neighbour, other) = host.served();
    host.helper.signal(rustix::process::Signal::STOP);
    let volume = host.lab.volume();
    intend(&host.api, &volume);
    let begun = Instant::now();
    while !section(&volume).exists() {
        assert!(begun.elapsed() < SOON);
        thread::yield_now();
    }
    assert_eq!(nbd::info(ADDRESS, &volume.export()).unwrap(), REP_ERR_UNKNOWN, "it was not told");
    host.server().kill().unwrap();
    wait(&host.api, &neighbour, "exporting");
    let mut disk = host.lab.disk(&volume.serial, MIB).unwrap();
    disk.attach().unwrap();
    wait(&host.api, &volume, "exporting");
    host.helper.signal(rustix::process::Signal::CONT);
    host.server().start().unwrap();
    for (volume, disk) in [(&neighbour, &other), (&volume, &disk)] {
        wait(&host.api, volume, "ready");
        host.bytes_are_right(volume, disk);
    }
}

#[test]
fn a_full_disk_stops_new_exports_alone_and_revoking_works_on_it() {
    let lab = Lab::new();
    let installed = Installed::new(&lab, Release::Trixie).unwrap();
    let small = lab.dir().join("small");
    fs::create_dir(&small).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k,mode=755", "tmpfs"]).arg(&small).status();
    assert!(mounted.unwrap().success());
    for (name, place) in [("sections", FOLDER), ("exports", LINKS)] {
        fs::create_dir(small.join(name)).unwrap();
        std::os::unix::fs::chown(small.join(name), Some(lab::people::ATTACHD.id), None).unwrap();
        installed.lay_in(&small.join(name), Path::new(place)).unwrap();
    }
    let host = Host::with(lab, installed, "signal");
    let (neighbour, other) = host.served();
    let (going, _its) = host.served();
    let filler = small.join("filler");
    let full = fs::write(&filler, vec![0; 1 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);

    let volume = host.lab.volume();
    intend(&host.api, &volume);
    let mut disk = host.lab.disk(&volume.serial, MIB).unwrap();
    disk.attach().unwrap();
    let shown = wait_reason(&host.api, &volume, "EXPORT_FOLDER");
    assert!(shown["reason"]["message"].as_str().unwrap().contains("No space left"), "{shown:#}");
    let told = wait_problem(&host.api, "EXPORTS_FAILING", true);
    assert!(told["message"].as_str().unwrap().contains("No space left"), "{told}");
    host.bytes_are_right(&neighbour, &other);
    withdraw(&host.api, &going);
    assert_ne!(go(&going), REP_ACK);
    assert!(!section(&going).exists());

    fs::remove_file(&filler).unwrap();
    wait(&host.api, &volume, "ready");
    host.bytes_are_right(&volume, &disk);
}

/// A flag that is set when this is dropped.
#[derive(Default)]
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// 200 cycles of publish and revoke, a thousand signals, and in the meantime a thousand more changes that the server
/// is signalled for.
#[test]
fn a_client_that_copies_from_a_neighbour_is_never_disturbed() {
    let mut host = Host::signalled();
    let (neighbour, other) = host.served();
    let (volume, disk) = host.served();
    let pid = host.server().pid();
    let stop = Stop::default();
    let (stopped, export, file) = (stop.0.clone(), neighbour.export(), other.file().to_owned());
    let copies = thread::scope(|scope| {
        let copying = scope.spawn(|| {
            let lab = &host.lab;
            let mut held = lab.nbd_client(&export).unwrap();
            let mut copies = 0;
            while !stopped.load(Ordering::Acquire) {
                lab.nbdcopy_equals(&export, &file).unwrap();
                held.read(0, 4096).unwrap();
                copies += 1;
            }
            copies
        });
        // The flag is set even if something below fails, because the scope waits for the copier.
        let stop = stop;
        for _ in 0..200 {
            withdraw(&host.api, &volume);
            assert_ne!(go(&volume), REP_ACK);
            intend(&host.api, &volume);
            wait(&host.api, &volume, "ready");
        }
        let Server::Signalled(server) = &host.server else { panic!("no main process") };
        for _ in 0..1000 {
            server.reload().unwrap();
        }
        // A thousand announced volumes: each needs a signal, and one signal serves all that wait.
        for _ in 0..1000 {
            intend(&host.api, &host.lab.volume());
        }
        let last = host.lab.volume();
        intend(&host.api, &last);
        let begun = Instant::now();
        while nbd::info(ADDRESS, &last.export()).unwrap() != REP_ACK {
            assert!(begun.elapsed() < SOON, "the last one is known, too");
            thread::sleep(Duration::from_millis(20));
        }
        drop(stop);
        copying.join().unwrap()
    });
    println!("{copies} copies of the neighbour meanwhile, all of them right");
    assert!(copies > 20, "{copies}: the trap was live");
    assert_eq!(host.server().pid(), pid, "the server never died");
    host.bytes_are_right(&volume, &disk);
}
