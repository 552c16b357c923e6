//! The NBD port with many clients: the limits of the unit, and what remains when they are gone.

use std::collections::VecDeque;
use std::fs;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use lab::Volume;
use lab::nbd::NbdClient;
use rustix::net::sockopt::set_socket_linger;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::host::{Host, MIB};

const ADDRESS: &str = "127.0.0.1:10809";
const NBDKIT: &str = "attachd-nbdkit.service";
/// The unit's `limit=`.
const CLIENTS: usize = 256;
/// An nbdkit without clients has fewer descriptors than this.
const LEFT: usize = 50;
/// More clients than the unit may log lines about.
const TURNED_AWAY: usize = 3000;

/// Raises the test's own descriptor limit.
fn many_descriptors() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

/// Returns the processor time of a unit's process, in hundredths of a second.
fn used(host: &Host) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", host.inside.main_pid(NBDKIT).unwrap())).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

/// Waits two seconds, by asking the daemon for a state that is not reached.
fn two_seconds(host: &Host) {
    let nobody = Volume::random();
    host.intend(&nobody);
    let reply = host.api.get(&format!("/api/v1/volumes/{}?wait=ready&timeout_seconds=2", nobody.id)).unwrap();
    assert_eq!(reply.json["code"], "WAIT_TIMEOUT", "{}", reply.text);
    host.withdraw(&nobody);
}

fn assert_idle(host: &Host) {
    let before = used(host);
    two_seconds(host);
    let used = used(host) - before;
    assert!(used < 40, "nbdkit has used {used} of 200 hundredths of a second");
}

fn is_served(host: &Host, volume: &Volume) -> bool {
    host.lab().nbd_client(&volume.export()).and_then(|mut client| client.read(0, 512)).is_ok()
}

fn descriptors(host: &Host) -> usize {
    fs::read_dir(format!("/proc/{}/fd", host.inside.main_pid(NBDKIT).unwrap())).unwrap().count()
}

fn words_in_the_journal(host: &Host) -> usize {
    host.inside.journalctl(&["-u", NBDKIT, "-o", "cat"]).unwrap().lines().count()
}

/// Opens and closes connections, with `at_once` of them open at one time.
fn come_and_go(times: usize, at_once: usize) {
    const THREADS: usize = 4;
    let address = ADDRESS.parse().unwrap();
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(move || {
                let (mut open, mut waited) = (VecDeque::new(), 0);
                for _ in 0..times / THREADS {
                    // If no server accepts any more, the kernel leaves the connection waiting.
                    let Ok(connection) = TcpStream::connect_timeout(&address, Duration::from_millis(100)) else {
                        waited += 1;
                        if waited > 20 {
                            break;
                        }
                        continue;
                    };
                    // Closed with a reset, so that the kernel keeps nothing of it.
                    set_socket_linger(&connection, Some(Duration::ZERO)).unwrap();
                    open.push_back(connection);
                    if open.len() > at_once / THREADS {
                        open.pop_front();
                    }
                }
            });
        }
    });
}

#[test]
fn the_next_client_of_a_full_port_is_refused_and_earlier_ones_stay_served() {
    many_descriptors();
    let host = Host::installed();
    let (volume, _disk) = host.served();
    let clients: Vec<NbdClient> =
        (0..CLIENTS).map(|_| host.lab().nbd_client(&volume.export()).unwrap_or_else(|e| panic!("{e:#}"))).collect();
    let mut clients = clients;
    for _ in 0..TURNED_AWAY {
        assert!(!is_served(&host, &volume), "one too many");
    }
    for client in &mut clients {
        assert_eq!(client.read(0, 512).unwrap().len(), 512);
    }
    assert_idle(&host);
    let words = words_in_the_journal(&host);
    // journald multiplies the unit's limit by up to six, depending on the free space.
    assert!((1..TURNED_AWAY).contains(&words), "{words} lines");

    clients.truncate(CLIENTS - 1);
    while !is_served(&host, &volume) {}
    // The control: each client has a thread of its own, and more for its requests.
    let threads: usize = host.process(NBDKIT, "Threads").parse().unwrap();
    assert!(threads > (CLIENTS - 1) * 9, "{threads}");
}

#[test]
fn silent_clients_do_not_take_the_port_from_others() {
    many_descriptors();
    let host = Host::installed();
    let (volume, _disk) = host.served();
    let silent: Vec<_> = (0..1500).map(|_| TcpStream::connect(ADDRESS).unwrap()).collect();
    assert!(is_served(&host, &volume));
    assert_idle(&host);
    let (another, _its) = host.served();
    assert!(is_served(&host, &another), "{} say nothing", silent.len());
    // The control: 1500 would be too many for an unpatched nbdkit.
    assert!(descriptors(&host) > 4000, "{}", descriptors(&host));
}

#[test]
fn the_port_is_served_after_a_hundred_thousand_connections_have_come_and_gone() {
    many_descriptors();
    let host = Host::installed();
    let (volume, _disk) = host.served();
    let process = host.inside.main_pid(NBDKIT).unwrap();
    come_and_go(100_000, 6000);
    while !is_served(&host, &volume) {}
    assert_idle(&host);
    assert_eq!(host.inside.main_pid(NBDKIT).unwrap(), process, "it was not even started anew");
    let words = words_in_the_journal(&host);
    assert!(words < TURNED_AWAY, "{words} lines in the journal");
    let left = descriptors(&host);
    assert!(left < LEFT, "none is lost: {left}");
}

/// The control of the tests above: an nbdkit whose only limit is its descriptors leaks those that it could not serve.
#[test]
fn nbdkit_that_runs_out_of_descriptors_leaks_some_for_ever() {
    many_descriptors();
    let host = Host::installed();
    let unlimited = "[Service]\nDeviceAllow=block-loop rw\nLimitNOFILE=128\nExecStart=\n\
        ExecStart=/usr/bin/nbdkit -f -P /run/attachd-nbdkit/nbdkit.pid file dir=/run/attachd/exports\n";
    host.inside.drop_in(NBDKIT, unlimited).unwrap();
    host.run("systemctl", &["restart", NBDKIT]);
    let (volume, disk) = host.served();
    assert!(is_served(&host, &volume), "{MIB} bytes of {}", disk.node().display());
    assert_eq!(host.inside.property(NBDKIT, "LimitNOFILE").unwrap(), "128");
    // Each round leaks a few of the 128.
    let lost = (0..20).any(|_| {
        come_and_go(5000, 400);
        two_seconds(&host);
        descriptors(&host) > LEFT
    });
    assert!(lost, "{}", descriptors(&host));
}
