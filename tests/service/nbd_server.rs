//! nbd-server's units: both ways under a real systemd, in their sandboxes.

use std::fs;
use std::process::Command;
use std::time::Instant;

use attachd::export::nbd_server::files::{Files, LOOPBACK};
use lab::nbd::{self, REP_ACK, REP_ERR_POLICY, REP_ERR_UNKNOWN};
use lab::nbd_server::{FOLDER, Installed, PID_FILE, Release};
use lab::watch::{FolderWatch, readable};
use lab::{Disk, Volume};

use crate::host::{Host, MIB, SOON, append_to_config};

const ADDRESS: &str = "127.0.0.1:10809";
const ROOT: &str = "/usr/lib/lab-nbd-server";

/// nbd-server on the host: the units' programs run in the root of their Debian release, where it is installed.
pub(crate) fn install(host: &Host, release: Release) {
    let installed = Installed::new(host.lab(), release).unwrap();
    // Copied, because the box has folders of its own where the build's may be; -x leaves out what is laid in.
    let copied = Command::new("cp").args(["-ax", installed.root().to_str().unwrap(), ROOT]).status().unwrap();
    assert!(copied.success());
    let there = format!(
        "[Service]\nRootDirectory={ROOT}\nMountAPIVFS=yes\nBindPaths=/dev /run\nBindReadOnlyPaths=/etc/attachd\n\
         DeviceAllow=block-loop rw\n"
    );
    for unit in ["attachd-nbd-server.service", "attachd-nbd-server@.service"] {
        host.inside.drop_in(unit, &there).unwrap();
    }
    // What systemd-analyze looks for.
    fs::copy(format!("{ROOT}/usr/bin/nbd-server"), "/usr/bin/nbd-server").unwrap();
}

/// A disk that attachd has claimed and udev has marked; its export prepared by hand.
fn prepared(host: &Host) -> (Volume, Disk) {
    let volume = host.lab().volume();
    let mut disk = host.lab().disk(&volume.serial, MIB).unwrap();
    host.intend(&volume);
    host.lab().attach_settled(&mut disk).unwrap();
    files().prepare(volume.id.parse().unwrap(), volume.link().to_str().unwrap()).unwrap();
    (volume, disk)
}

fn files() -> Files {
    Files::new(FOLDER.into(), LOOPBACK)
}

fn go(volume: &Volume) -> u32 {
    nbd::go(ADDRESS, &volume.export()).unwrap()
}

/// Asks the helper in its sandbox, as root, from inside: it cannot name a caller of another process id space.
fn reload(host: &Host) -> String {
    let ask = r#"my $door = IO::Socket::UNIX->new("/run/attachd/helper.sock"); print $door "reload\n"; print <$door>"#;
    host.run("perl", &["-MIO::Socket::UNIX", "-e", ask])
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

    let (volume, disk) = prepared(&host);
    let said = reload(&host);
    assert!(said.contains(r#""ok":true"#), "{said}\n{}", host.story());
    wait_for(&volume, REP_ACK, &host);
    assert_eq!(go(&volume), REP_ERR_POLICY);
    files().admit(volume.id.parse().unwrap()).unwrap();
    host.lab().nbdcopy_equals(&volume.export(), disk.file()).unwrap_or_else(|e| panic!("{e:#}\n{}", host.story()));

    let mut client = host.lab().nbd_client(&volume.export()).unwrap();
    files().revoke(volume.id.parse().unwrap()).unwrap();
    host.run("systemctl", &["restart", "attachd-nbd-server.service"]);
    wait_for(&volume, REP_ERR_UNKNOWN, &host);
    assert_eq!(client.read(0, 512).unwrap().len(), 512, "a client from before");
    assert_ne!(pid(), first);
    // Whichever is started last has the port.
    host.run("systemctl", &["start", "attachd-nbdkit.service"]);
    assert_eq!(host.inside.property("attachd-nbd-server.service", "ActiveState").unwrap(), "inactive");
    // What a removal by force does.
    assert_eq!(client.read(0, 512).unwrap().len(), 512, "it stays even then");
    host.run("systemctl", &["kill", "--signal=KILL", "attachd-nbd-server.service"]);
    assert!(client.read(0, 512).is_err());
}

#[test]
fn the_socket_activated_unit_serves_each_connection_on_both_versions() {
    for release in [Release::Bookworm, Release::Trixie] {
        let run = move || {
            let host = Host::installed();
            install(&host, release);
            host.run("systemctl", &["start", "attachd-nbd-server.socket"]);
            let (volume, disk) = prepared(&host);
            assert_eq!(go(&volume), REP_ERR_POLICY, "{}", host.story());
            files().admit(volume.id.parse().unwrap()).unwrap();
            host.lab()
                .nbdcopy_equals(&volume.export(), disk.file())
                .unwrap_or_else(|e| panic!("{e:#}\n{}", host.story()));
            files().revoke(volume.id.parse().unwrap()).unwrap();
            assert_eq!(nbd::info(ADDRESS, &volume.export()).unwrap(), REP_ERR_UNKNOWN);
        };
        std::thread::spawn(run).join().unwrap();
    }
}

/// Left to itself, attachd goes the way whose unit is started; and what was served by one is served by the next.
#[test]
fn attachd_serves_by_nbd_server_in_the_way_whose_unit_runs() {
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
        let links = fs::read_dir("/run/attachd/exports").unwrap().count();
        assert_eq!(links, 0, "what nbdkit served, it must not serve again unproven");
        host.wait(&volume, "ready");
        let backend = host.api.get("/api/v1/health").unwrap().json["backend"].clone();
        assert_eq!((&backend["mode"], &backend["state"]), (&mode.into(), &"up".into()), "{backend}");
        copies();
        // One that is announced while it runs: in the signalled way by the helper's signal.
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
