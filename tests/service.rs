//! attachd as a service: the package, its units and its rules under a real systemd.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

#[path = "service/access.rs"]
mod access;
#[path = "service/backend.rs"]
mod backend;
#[path = "service/bad_input.rs"]
mod bad_input;
#[path = "service/cloud.rs"]
mod cloud;
#[path = "service/host.rs"]
mod host;
#[path = "service/initramfs.rs"]
mod initramfs;
#[path = "service/journal.rs"]
mod journal;
#[path = "service/lifetime.rs"]
mod lifetime;
#[path = "service/nbd_server.rs"]
mod nbd_server;
#[path = "service/own_disks.rs"]
mod own_disks;
#[path = "service/package.rs"]
mod package;
#[path = "service/port.rs"]
mod port;
#[path = "service/privilege.rs"]
mod privilege;
#[path = "service/server_down.rs"]
mod server_down;
#[path = "service/tcp.rs"]
mod tcp;
#[path = "service/tls.rs"]
mod tls;
#[path = "service/withdrawal.rs"]
mod withdrawal;

use std::time::{Duration, Instant};

use host::Host;
use lab::nbd_server::Release;

/// The units of the package.
const UNITS: [&str; 13] = [
    "attachd.service",
    "attachd.socket",
    "attachd-helper.service",
    "attachd-helper.socket",
    "attachd-look-again.service",
    "attachd-look-into-all.service",
    "attachd-look-into-all.timer",
    "attachd-nbd-server.service",
    "attachd-nbd-server.socket",
    "attachd-nbd-server@.service",
    "attachd-nbdkit.service",
    "attachd-nbdkit.socket",
    "attachd-tcp.socket",
];

#[test]
fn three_commands_lead_from_an_empty_host_to_a_served_volume() {
    let host = Host::empty();
    let volume = host.lab().volume();
    let mut disk = host.lab().disk(&volume.serial, host::MIB).unwrap();
    let deb = host::bring(&package::deb());

    let ran = host.show("dpkg", &["-i", deb]);
    println!("   ({ran:.1?})");
    host.show("systemctl", &["start", "attachd"]);
    host.show("attachctl", &["intent", "add", &volume.id]);
    let began = Instant::now();
    disk.attach().unwrap();
    host.wait(&volume, "ready");
    let took = began.elapsed();
    println!("attached, marked, proven and served in {took:.0?}");
    host.lab().nbdcopy_equals(&volume.export(), disk.file()).unwrap();
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn systemd_analyze_verify_accepts_every_unit() {
    let host = Host::installed();
    // The package only suggests nbd-server, but a unit's program must be there to be verified.
    nbd_server::install(&host, Release::Trixie);
    for unit in UNITS {
        let path = format!("/usr/lib/systemd/system/{unit}");
        let said = host.inside.output("systemd-analyze", &["verify", "--man=no", &path]).unwrap();
        let words = [said.stdout, said.stderr].concat();
        assert!(said.status.success() && words.is_empty(), "{unit}: {}", String::from_utf8_lossy(&words));
    }
}

#[test]
fn the_exposure_of_each_service_is_as_low_as_documented() {
    let host = Host::installed();
    for (unit, limit) in [
        ("attachd.service", 1.4),
        ("attachd-nbdkit.service", 1.0),
        ("attachd-helper.service", 1.7),
        ("attachd-nbd-server.service", 1.3),
        ("attachd-nbd-server@x.service", 1.3),
    ] {
        let table = host.inside.run("systemd-analyze", &["security", "--no-pager", unit]).unwrap();
        for line in table.lines().filter(|line| line.starts_with('✗') || line.contains("Overall")) {
            println!("{}", line.trim_end());
        }
        let overall = table.lines().rev().find(|line| line.contains("Overall exposure level")).unwrap();
        let level = overall.split_once(": ").unwrap().1.split_whitespace().next().unwrap();
        let level: f64 = level.parse().unwrap();
        assert!(level <= limit, "{unit}: {level}");
    }
}
