//! The API over TCP, with its socket unit and in the service's sandbox.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use lab::TcpCaller;

use crate::host::Host;
use crate::lifetime::End;

/// A user who is not in the group `attachd`.
const STRANGER: u32 = 60_003;

#[test]
fn two_commands_open_the_predecessors_port_and_no_caller_is_refused_while_attachd_restarts() {
    let host = Host::installed();
    let root = TcpCaller::new("127.0.0.1:8090".parse().unwrap(), 0);
    assert!(root.connect().is_err(), "the control: off by default");
    host.show("systemctl", &["enable", "attachd-tcp.socket"]);
    host.show("systemctl", &["restart", "attachd"]);
    let health = root.get("/api/v1/health").unwrap().expect(200).unwrap();
    assert_eq!(health["listeners"][1]["from"], "systemd", "{:#}", health["listeners"]);
    assert_eq!(health["listeners"][1]["address"], "127.0.0.1:8090");
    // The sandbox lets attachd ask the kernel who connects.
    let stranger = TcpCaller::new("127.0.0.1:8090".parse().unwrap(), STRANGER);
    assert_eq!(stranger.get("/api/v1/health").unwrap().status, 403);
    host.show("usermod", &["-aG", "attachd", "daemon"]);
    let member = host.run("id", &["-u", "daemon"]).trim().parse().unwrap();
    TcpCaller::new("127.0.0.1:8090".parse().unwrap(), member).get("/api/v1/health").unwrap().expect(200).unwrap();

    let (done, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                root.get("/api/v1/volumes").expect("the port is always there").expect(200).unwrap();
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
        let _end = End(&done);
        for _ in 0..3 {
            host.run("systemctl", &["restart", "attachd"]);
        }
    });
    println!("{} answers during three restarts", answered.into_inner());
    host.show("systemctl", &["disable", "--now", "attachd-tcp.socket"]);
    host.show("systemctl", &["restart", "attachd"]);
    assert!(root.connect().is_err(), "and it is off again");
}
