//! What survives what: restart, kill, upgrade, removal, purge.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use lab::Volume;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::host::Host;
use crate::package;

/// Runs `act` while clients connect continually, each of which must be served; returns how many were served.
fn while_clients_connect(host: &Host, volume: &Volume, act: impl FnOnce()) -> usize {
    let (done, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let read = host.lab().nbd_client(&volume.export()).and_then(|mut client| client.read(0, 4096));
                assert_eq!(read.expect("an export outlives the daemon").len(), 4096);
                served.fetch_add(1, Ordering::Relaxed);
            }
        });
        let _end = End(&done);
        act();
    });
    served.into_inner()
}

/// Ends a loop, even if the code beside it panics.
pub(crate) struct End<'a>(pub(crate) &'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn kill(host: &Host, unit: &str, signal: Signal) {
    let pid = host.inside.main_pid(unit).unwrap();
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

/// Checks that the daemon answers (the request waits in the socket's queue until it does) and that the export is
/// still served.
fn is_served(host: &Host, volume: &Volume) {
    host.wait(volume, "ready");
    assert!(host.lab().nbd_connects(&volume.export()));
}

#[test]
fn exports_are_served_and_intents_accepted_while_the_daemon_restarts() {
    let host = Host::installed();
    let (volume, _disk) = host.served();
    let before = host.inside.main_pid("attachd.service").unwrap();
    let done = AtomicBool::new(false);
    let accepted = AtomicUsize::new(0);
    let clients = while_clients_connect(&host, &volume, || {
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let body = json!({ "volume_id": Volume::random().id });
                    let reply = host.api.post("/api/v1/intents", &body).expect("the socket is always there");
                    // Even the daemon that is about to end tells no caller to come back later.
                    assert_eq!(reply.status, 201, "{}", reply.text);
                    accepted.fetch_add(1, Ordering::Relaxed);
                }
            });
            let _end = End(&done);
            for _ in 0..3 {
                host.run("systemctl", &["restart", "attachd"]);
            }
        });
    });
    let accepted = accepted.into_inner();
    println!("three restarts: {clients} clients served, {accepted} intents accepted");
    assert!(clients > 0 && accepted > 0);
    assert_ne!(host.inside.main_pid("attachd.service").unwrap(), before);
    is_served(&host, &volume);
    let listed = host.api.get("/api/v1/intents").unwrap().expect(200).unwrap();
    let kept = listed["intents"].as_array().unwrap().len();
    assert_eq!(kept, accepted + 1, "none was forgotten, none made up");
}

#[test]
fn a_killed_daemon_comes_back_by_itself_and_its_exports_stay_served() {
    let host = Host::installed();
    let (volume, _disk) = host.served();
    let clients = while_clients_connect(&host, &volume, || {
        kill(&host, "attachd.service", Signal::KILL);
        is_served(&host, &volume);
    });
    assert!(clients > 0);
    assert_eq!(host.inside.property("attachd.service", "NRestarts").unwrap(), "1");
}

#[test]
fn a_daemon_that_hangs_is_restarted_by_the_watchdog() {
    let host = Host::installed();
    let dir = "/etc/systemd/system/attachd.service.d";
    fs::write(format!("{dir}/watchdog.conf"), "[Service]\nWatchdogSec=2s\nTimeoutAbortSec=1s\n").unwrap();
    host.run("systemctl", &["daemon-reload"]);
    host.run("systemctl", &["restart", "attachd"]);
    let (volume, _disk) = host.served();
    let clients = while_clients_connect(&host, &volume, || {
        kill(&host, "attachd.service", Signal::STOP);
        is_served(&host, &volume);
    });
    assert!(clients > 0);
    assert_eq!(host.inside.property("attachd.service", "NRestarts").unwrap(), "1");
    assert!(host.story().contains("Watchdog timeout"), "{}", host.story());
}

#[test]
fn a_killed_nbd_server_comes_back_and_clients_wait_instead_of_being_refused() {
    let host = Host::installed();
    let (volume, _disk) = host.served();
    kill(&host, "attachd-nbdkit.service", Signal::KILL);
    let mut client = host.lab().nbd_client(&volume.export()).unwrap();
    assert_eq!(client.read(0, 512).unwrap().len(), 512);
    drop(client);
    is_served(&host, &volume);
}

#[test]
fn a_stopped_daemon_leaves_its_exports_served_and_a_request_starts_it() {
    let host = Host::installed();
    let (volume, _disk) = host.served();
    let stopped = host.run("systemctl", &["stop", "attachd.service"]);
    assert_eq!(host.inside.property("attachd.service", "Result").unwrap(), "success", "{stopped}");
    assert!(host.lab().nbd_connects(&volume.export()));
    is_served(&host, &volume);
}

#[test]
fn an_upgrade_restarts_the_daemon_and_nothing_else() {
    let host = Host::installed();
    let (volume, _disk) = host.served();
    let mut client = host.lab().nbd_client(&volume.export()).unwrap();
    let pid = |unit: &str| host.inside.main_pid(unit).unwrap();
    let before = (pid("attachd.service"), pid("attachd-nbdkit.service"));
    let newer = package::build("2");
    let clients = while_clients_connect(&host, &volume, || host.install(&newer));
    println!("upgraded while {clients} clients were served");
    let after = (pid("attachd.service"), pid("attachd-nbdkit.service"));
    assert!(after.0 != before.0 && after.1 == before.1, "{before:?} {after:?}");
    assert_eq!(client.read(0, 512).unwrap().len(), 512, "a client from before");
    assert!(host.run("dpkg-query", &["-W", "attachd"]).contains("-2"));
    is_served(&host, &volume);
}

#[test]
fn a_removal_is_refused_while_a_client_is_connected_and_then_takes_exports_and_claims() {
    let host = Host::installed();
    let (volume, disk) = host.served();
    let client = host.lab().nbd_client(&volume.export()).unwrap();
    let refused = host.inside.output("dpkg", &["--remove", "attachd"]).unwrap();
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    println!("{words}");
    assert!(!refused.status.success());
    assert!(words.contains("ATTACHD_FORCE_REMOVE=1 dpkg --remove attachd"), "how to force it");
    is_served(&host, &volume);
    drop(client);

    let said = host.run("dpkg", &["--remove", "attachd"]);
    println!("{said}");
    assert!(std::net::TcpStream::connect("127.0.0.1:10809").is_err());
    assert!(!Path::new("/run/attachd/exports").exists());
    assert_eq!(fs::read_dir("/var/lib/attachd/claims").unwrap().count(), 0);
    assert_eq!(fs::metadata(disk.node()).unwrap().gid(), 6, "its group is disk again");

    // The intents are kept until the purge: after a new installation the volumes are served again.
    host.install(&package::deb());
    is_served(&host, &volume);
}

#[test]
fn a_forced_removal_cuts_the_clients() {
    let host = Host::installed();
    let (volume, disk) = host.served();
    let mut client = host.lab().nbd_client(&volume.export()).unwrap();
    let forced =
        host.inside.command("dpkg", &["--remove", "attachd"]).env("ATTACHD_FORCE_REMOVE", "1").output().unwrap();
    assert!(forced.status.success(), "{}", String::from_utf8_lossy(&forced.stderr));
    assert!(client.read(0, 512).is_err());
    assert_eq!(fs::metadata(disk.node()).unwrap().gid(), 6);
}

#[test]
fn nothing_is_left_after_a_purge() {
    let host = Host::installed();
    let (_volume, disk) = host.served();
    host.run("dpkg", &["--purge", "attachd"]);
    assert_eq!(fs::metadata(disk.node()).unwrap().gid(), 6);
    let found = host.run(
        "find",
        &["/etc", "/usr", "/var", "/run", "-xdev", "-path", "/run/lab", "-prune", "-o", "-name", "*attachd*", "-print"],
    );
    // The box's own files: the rules for loop devices and the drop-ins, as an administrator would have made them.
    let own = [
        "/run/udev/rules.d/59-attachd.rules",
        "/etc/systemd/system/attachd.service.d",
        "/etc/systemd/system/attachd-helper.service.d",
        "/etc/systemd/system/attachd-nbdkit.service.d",
    ];
    let left: Vec<_> = found.lines().filter(|path| !own.contains(path)).collect();
    assert!(left.is_empty(), "{left:#?}");
    for file in ["/etc/passwd", "/etc/group"] {
        assert!(!fs::read_to_string(file).unwrap().contains("attachd"), "{file}");
    }
    let units = host.run("systemctl", &["list-units", "--all", "--plain", "--no-legend", "attachd*"]);
    assert!(!units.contains("active"), "{units}");
}
