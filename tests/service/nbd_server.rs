//! nbd-server's units: both modes under a real systemd, in their sandboxes.

use std::fs;
use std::process::Command;
use std::time::Instant;

use lab::Volume;
use lab::nbd::{self, REP_ACK, REP_ERR_POLICY, REP_ERR_UNKNOWN};
use lab::nbd_server::{Installed, PID_FILE, Release};
use lab::watch::{FolderWatch, readable};

use crate::host::{Host, SOON, append_to_config};

const ADDRESS: &str = "127.0.0.1:10809";
const ROOT: &str = "/usr/lib/lab-nbd-server";

/// Installs nbd-server on the host: the units' programs run in the root folder of their Debian release.
pub(crate) fn install(host: &Host, release: Release) {
    let installed = Installed::new(host.lab(), release).unwrap();
    // Copied, because the box has its own folders where the build's may be. -x leaves out mounts.
    let copied = Command::new("cp").args(["-ax", installed.root().to_str().unwrap(), ROOT]).status().unwrap();
    assert!(copied.success());
    let there = format!(
        "[Service]\nRootDirectory={ROOT}\nMountAPIVFS=yes\nBindPaths=/dev /run\nBindReadOnlyPaths=/etc/attachd\n\
         DeviceAllow=block-loop rw\n"
    );
    for unit in ["attachd-nbd-server.service", "attachd-nbd-server@.service"] {
        host.inside.drop_in(unit, &there).unwrap();
    }
    // systemd-analyze checks that this file exists.
    fs::copy(format!("{ROOT}/usr/bin/nbd-server"), "/usr/bin/nbd-server").unwrap();
}

fn go(volume: &Volume) -> u32 {
    nbd::go(ADDRESS, &volume.export()).unwrap()
}

fn wait_for(volume: &Volume, answer: u32, host: &Host) {
    let begun = Instant::now();
    while nbd::info(ADDRESS, &volume.export()).ok() != Some(answer) {
        assert!(begun.elapsed() < SOON, "{}", host.story());
    }
}

#[test]
fn the_signalled_unit_takes_nbdkits_place_and_keeps_its_clients_over_a_restart() {
    let host = Host::installed();
    install(&host, Release::Trixie);
    let watch = FolderWatch::new("/run/attachd-nbd-server".as_ref()).unwrap();
    host.run("systemctl", &["disable", "--now", "attachd-nbdkit.socket", "attachd-nbdkit.service"]);
    host.run("systemctl", &["enable", "--now", "attachd-nbd-server.service"]);
    assert!(readable(&[watch.fd()], SOON).unwrap());
    let pid = || host.inside.property("attachd-nbd-server.service", "MainPID").unwrap();
    let first = pid();
    host.run("systemctl", &["restart", "attachd.service"]);
    assert_eq!((pid(), fs::read_to_string(PID_FILE).unwrap().trim()), (first.clone(), first.as_str()));

    append_to_config("[export]\nbackend = \"nbd-server\"\nnbd_server_version = \"3.26.1-6\"\n");
    host.run("systemctl", &["restart", "attachd.service"]);
    let (volume, disk) = host.served();
    host.lab().nbdcopy_equals(&volume.export(), disk.file()).unwrap_or_else(|e| panic!("{e:#}\n{}", host.story()));

    let (gone, _its) = host.served();
    host.withdraw(&gone);
    assert_eq!((nbd::info(ADDRESS, &gone.export()).unwrap(), go(&gone)), (REP_ACK, REP_ERR_POLICY), "known still");
    let mut client = host.lab().nbd_client(&volume.export()).unwrap();
    host.run("systemctl", &["restart", "attachd-nbd-server.service"]);
    wait_for(&gone, REP_ERR_UNKNOWN, &host);
    assert_eq!(client.read(0, 512).unwrap().len(), 512, "a client from before");
    assert_ne!(pid(), first);
    // The unit that is started last has the port.
    host.run("systemctl", &["start", "attachd-nbdkit.service"]);
    assert_eq!(host.inside.property("attachd-nbd-server.service", "ActiveState").unwrap(), "inactive");
    // The same as in a forced removal.
    assert_eq!(client.read(0, 512).unwrap().len(), 512, "it stays even then");
    host.run("systemctl", &["kill", "--signal=KILL", "attachd-nbd-server.service"]);
    assert!(client.read(0, 512).is_err());
}

#[test]
fn the_socket_activated_unit_serves_each_connection_on_both_versions() {
    for (release, version) in [(Release::Bookworm, "3.24-1.1"), (Release::Trixie, "3.26.1-6")] {
        let run = move || {
            let host = Host::installed();
            install(&host, release);
            host.run("systemctl", &["disable", "--now", "attachd-nbdkit.socket", "attachd-nbdkit.service"]);
            host.run("systemctl", &["start", "attachd-nbd-server.socket"]);
            append_to_config(&format!("[export]\nbackend = \"nbd-server\"\nnbd_server_version = \"{version}\"\n"));
            host.run("systemctl", &["restart", "attachd.service"]);
            let (volume, disk) = host.served();
            host.lab()
                .nbdcopy_equals(&volume.export(), disk.file())
                .unwrap_or_else(|e| panic!("{e:#}\n{}", host.story()));
            let mut client = host.lab().nbd_client(&volume.export()).unwrap();
            client.write(4096, &[7; 512]).unwrap();
            assert_eq!(client.read(4096, 512).unwrap(), [7; 512]);
            crate::withdrawal::has_keep_alive(&host, &client.address().unwrap());
            drop(client);
            host.withdraw(&volume);
            assert_eq!(nbd::info(ADDRESS, &volume.export()).unwrap(), REP_ERR_UNKNOWN);
        };
        std::thread::spawn(run).join().unwrap();
    }
}

/// In `auto` mode attachd chooses the mode whose unit runs, and an export of one server is served by the next.
#[test]
fn attachd_uses_nbd_server_in_the_mode_whose_unit_runs() {
    let host = Host::installed();
    install(&host, Release::Trixie);
    let (volume, disk) = host.served();
    let copies = || {
        host.lab().nbdcopy_equals(&volume.export(), disk.file()).unwrap_or_else(|e| panic!("{e:#}\n{}", host.story()));
    };
    append_to_config("[export]\nbackend = \"nbd-server\"\nnbd_server_version = \"3.26.1-6\"\n");
    let mut before = vec!["attachd-nbdkit.socket", "attachd-nbdkit.service"];
    for (unit, mode) in [("attachd-nbd-server.service", "signal"), ("attachd-nbd-server.socket", "socket")] {
        host.run("systemctl", &[&["disable", "--now"], &*before].concat());
        host.run("systemctl", &["enable", "--now", unit]);
        before = vec![unit];
        host.run("systemctl", &["restart", "attachd.service"]);
        host.wait(&volume, "ready");
        let backend = host.api.get("/api/v1/health").unwrap().json["backend"].clone();
        assert_eq!((&backend["mode"], &backend["state"]), (&mode.into(), &"up".into()), "{backend}");
        copies();
        // A volume that is announced while the server runs: in signal mode the helper signals the server.
        let (late, its) = host.served();
        host.lab().nbdcopy_equals(&late.export(), its.file()).unwrap();
        host.withdraw(&late);
        assert_ne!(go(&late), REP_ACK);
        let health = host.run("attachctl", &["health"]);
        assert!(health.contains("WRITE_ZEROES") && health.contains(&format!("mode {mode}")), "{health}");
        host.show("attachctl", &["exports"]);
        if mode == "socket" {
            host.run("systemctl", &["stop", unit]);
            let shown = host.wait(&volume, "exporting");
            assert_eq!(shown["reason"]["code"], "BACKEND_DOWN");
        }
    }
}
