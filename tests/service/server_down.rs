//! An NBD server that is down: the messages name the cause and the cure.

use std::fs;
use std::time::Instant;

use lab::Volume;
use serde_json::Value;

use crate::host::{Host, SOON};

const SERVICE: &str = "attachd-nbdkit.service";
const SOCKET: &str = "attachd-nbdkit.socket";

/// A program of another user that takes the port.
const TAKER: &str = r#"use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalAddr => "127.0.0.1:10809", Listen => 5, ReuseAddr => 1) or die; while ($s->accept) {}"#;

fn backend(host: &Host) -> Value {
    host.api.get("/api/v1/health").unwrap().json["backend"].clone()
}

/// Returns the volume's reason, health and attachctl's output, once the server is down.
fn told(host: &Host, volume: &Volume) -> String {
    let begun = Instant::now();
    let shown = loop {
        let shown = host.shown(volume);
        if shown["reason"]["code"] == "BACKEND_DOWN" {
            break shown;
        }
        assert!(begun.elapsed() < SOON, "{shown:#}\n{}", host.story());
    };
    assert_eq!(shown["state"], "exporting");
    assert!(shown["reason"]["hint"].as_str().unwrap().contains(SERVICE), "{shown:#}");
    assert_eq!(backend(host)["state"], "down");
    let words = String::from_utf8(host.inside.output("attachctl", &["health"]).unwrap().stdout).unwrap();
    println!("{words}");
    shown["reason"]["message"].as_str().unwrap().to_owned() + "\n" + &words
}

#[test]
fn the_cause_of_a_server_that_is_down_is_named_with_its_cure() {
    let host = Host::installed();
    let (volume, _disk) = host.served();
    let up = || {
        host.run("systemctl", &["start", SOCKET, SERVICE]);
        host.wait(&volume, "ready");
    };

    host.run("systemctl", &["mask", "--now", SOCKET, SERVICE]);
    let words = told(&host, &volume);
    assert!(words.contains(&format!("{SERVICE} is masked (`systemctl unmask {SERVICE}`)")), "{words}");
    assert!(words.contains(&format!("unit     {SERVICE} is masked")), "{words}");
    host.run("systemctl", &["unmask", SOCKET, SERVICE]);
    up();

    host.run("systemctl", &["disable", "--now", SOCKET, SERVICE]);
    let words = told(&host, &volume);
    assert!(words.contains(&format!("{SERVICE} is not enabled")), "{words}");
    assert!(!words.contains("is masked"), "the control: {words}");
    host.run("systemctl", &["enable", SOCKET, SERVICE]);
    up();

    // Another program takes the port before the socket is started again.
    host.run("systemctl", &["stop", SOCKET, SERVICE]);
    host.run("systemd-run", &["-q", "--unit=taker", "-p", "User=nobody", "perl", "-e", TAKER]);
    let begun = Instant::now();
    while std::net::TcpStream::connect("127.0.0.1:10809").is_err() {
        assert!(begun.elapsed() < SOON, "{}", host.story());
    }
    assert!(!host.inside.output("systemctl", &["start", SOCKET]).unwrap().status.success(), "the control");
    host.run("systemctl", &["restart", "attachd"]);
    let words = told(&host, &volume);
    assert!(words.contains("127.0.0.1:10809 is taken by a program of nobody"), "{words}");
    assert!(words.contains("port     127.0.0.1:10809 is held by \"perl\",pid="), "{words}");
    host.run("systemctl", &["stop", "taker"]);
    up();

    // The program is missing: systemd keeps trying, and the server recovers when the program is back.
    fs::rename("/usr/bin/nbdkit", "/usr/bin/nbdkit.away").unwrap();
    host.run("systemctl", &["kill", "--signal=KILL", SERVICE]);
    let words = told(&host, &volume);
    assert!(words.contains("/usr/bin/nbdkit is not installed"), "{words}");
    let tries = || host.inside.property(SERVICE, "NRestarts").unwrap().parse::<u32>().unwrap();
    let begun = Instant::now();
    while tries() < 4 {
        assert!(begun.elapsed() < 2 * SOON, "{} tries\n{}", tries(), host.story());
    }
    fs::rename("/usr/bin/nbdkit.away", "/usr/bin/nbdkit").unwrap();
    host.wait(&volume, "ready");
    assert_eq!(host.inside.property(SOCKET, "ActiveState").unwrap(), "active", "it was never given up");
}

/// The control: with systemd's default limits the socket fails for good.
#[test]
fn with_the_usual_limits_of_systemd_the_port_would_be_given_up() {
    let host = Host::installed();
    let (_volume, _disk) = host.served();
    let usual =
        "[Unit]\nStartLimitIntervalSec=10s\nStartLimitBurst=5\n[Service]\nDeviceAllow=block-loop rw\nExecStopPost=\n";
    host.inside.drop_in(SERVICE, usual).unwrap();
    fs::rename("/usr/bin/nbdkit", "/usr/bin/nbdkit.away").unwrap();
    host.run("systemctl", &["kill", "--signal=KILL", SERVICE]);
    let failed = || host.inside.property(SERVICE, "ActiveState").unwrap() == "failed";
    while !failed() {
        let _ = std::net::TcpStream::connect("127.0.0.1:10809");
    }
    while host.inside.property(SOCKET, "ActiveState").unwrap() != "failed" {
        let _ = std::net::TcpStream::connect("127.0.0.1:10809");
    }
}
