//! The API over TCP: who may come in, who may not, and what a stranger cannot do.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use common::*;
use lab::{Attachd, AttachdOptions, Lab, TcpCaller, Volume};
use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::{Value, json};

/// The predecessor's port, which is free in the lab's own network.
const ADDRESS: &str = "127.0.0.1:8090";

/// Users who are neither root nor the daemon. Only the first two may come in.
const NAMED: u32 = 60_001;
const MEMBER: u32 = 60_002;
const STRANGER: u32 = 60_003;

/// Makes a lab whose daemon listens on TCP too.
fn on_tcp(more: &str) -> (Lab, Attachd) {
    let lab = with_nbdkit();
    lab.attachd_config(&format!("{CONFIG}[api]\ntcp = \"{ADDRESS}\"\ntcp_uids = [{NAMED}]\n{more}")).unwrap();
    let attachd = start(&lab);
    (lab, attachd)
}

fn by(uid: u32) -> TcpCaller {
    TcpCaller::new(ADDRESS.parse().unwrap(), uid)
}

/// Puts a user into the group `attachd`, in a file that also has a name that is not UTF-8.
fn make_member(uid: u32) {
    let mut passwd = fs::read("/etc/passwd").unwrap();
    passwd.extend(format!("member:x:{uid}:{uid}::/:/bin/sh\n").bytes());
    passwd.extend(b"ren\xe9:x:60009:60009:Ren\xe9:/:/bin/sh\n");
    fs::write("/etc/passwd", passwd).unwrap();
    let group = fs::read_to_string("/etc/group").unwrap();
    let line = group.lines().find(|line| line.starts_with("attachd:")).unwrap();
    fs::write("/etc/group", group.replace(line, &format!("{line}member"))).unwrap();
}

#[test]
fn without_the_setting_nothing_listens() {
    let (_lab, _attachd, api) = up();
    let refused = TcpStream::connect(ADDRESS).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let listeners = health(&api)["listeners"].clone();
    assert_eq!(listeners, json!([{ "address": lab::attachd::SOCKET, "from": "attachd", "tls": false }]));
}

#[test]
fn root_members_of_the_group_and_named_users_are_served_and_others_are_told_how_to_come_in() {
    let (_lab, attachd) = on_tcp("");
    for uid in [0, NAMED, lab::people::ATTACHD.id] {
        by(uid).get("/api/v1/health").unwrap().expect(200).unwrap();
    }
    let body = json!({ "volume_id": Volume::random().id });
    let asked = by(NAMED).post("/api/v1/intents", &body).unwrap().expect(201).unwrap();
    assert_eq!(asked["uid"], NAMED, "who has asked is on record");
    for uid in [MEMBER, STRANGER] {
        let refused = by(uid).get("/api/v1/health").unwrap();
        assert_eq!((refused.status, &refused.json["code"]), (403, &json!("NOT_LET_IN")), "{}", refused.text);
        let text = refused.json["error"].as_str().unwrap();
        assert!(text.contains("usermod -aG attachd") && text.contains(&uid.to_string()), "{text}");
    }
    // A new member comes in at once.
    make_member(MEMBER);
    by(MEMBER).get("/api/v1/health").unwrap().expect(200).unwrap();
    assert_eq!(by(STRANGER).get("/api/v1/health").unwrap().status, 403, "the control");
    let listeners = health(&attachd.api())["listeners"].clone();
    assert_eq!(listeners[1], json!({ "address": ADDRESS, "from": "attachd", "tls": false }));
}

#[test]
fn a_socket_for_ipv6_with_ipv4_addresses_is_judged_by_its_user_too() {
    let (_lab, _attachd) = on_tcp("");
    let mapped: SocketAddr = "[::ffff:127.0.0.1]:8090".parse().unwrap();
    TcpCaller::new(mapped, NAMED).get("/api/v1/health").unwrap().expect(200).unwrap();
    assert_eq!(TcpCaller::new(mapped, STRANGER).get("/api/v1/health").unwrap().status, 403);
}

#[test]
fn on_ipv6_users_are_known_too() {
    let lab = with_nbdkit();
    lab.attachd_config(&format!("{CONFIG}[api]\ntcp = \"[::1]:8090\"\ntcp_uids = [{NAMED}]\n")).unwrap();
    let _attachd = start(&lab);
    let at: SocketAddr = "[::1]:8090".parse().unwrap();
    TcpCaller::new(at, NAMED).get("/api/v1/health").unwrap().expect(200).unwrap();
    assert_eq!(TcpCaller::new(at, STRANGER).get("/api/v1/health").unwrap().status, 403);
}

/// Returns whether an intent is on record.
fn is_known(attachd: &Attachd, volume: &Volume) -> bool {
    attachd.api().get(&format!("/api/v1/intents/{}", volume.id)).unwrap().status == 200
}

fn intent(volume: &Volume) -> String {
    let body = json!({ "volume_id": volume.id }).to_string();
    format!("POST /api/v1/intents HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// A stranger's request waits in the queue when its sender closes. Many kernels show such a socket as root's.
#[test]
fn a_request_whose_sender_has_closed_is_nobodys_and_is_not_carried_out() {
    let (lab, attachd) = on_tcp("");
    let (volume, control) = (lab.volume(), lab.volume());
    attachd.sigstop().unwrap();
    let mut stranger = by(STRANGER).connect().unwrap();
    stranger.write_all(intent(&volume).as_bytes()).unwrap();
    let row = |local: SocketAddr| {
        let table = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
        let port = format!(":{:04X}", local.port());
        let row = table.lines().find(|row| row.split_whitespace().nth(1).is_some_and(|at| at.ends_with(&port)));
        let fields: Vec<String> = row.unwrap().split_whitespace().map(str::to_owned).collect();
        (fields[7].clone(), fields[9].clone())
    };
    let local = stranger.local_addr().unwrap();
    assert_eq!(row(local).0, STRANGER.to_string());
    drop(stranger);
    assert_eq!(row(local).1, "0", "the trap: no inode, and the user may be shown as 0");
    let mut named = by(NAMED).connect().unwrap();
    named.write_all(intent(&control).as_bytes()).unwrap();
    attachd.sigcont().unwrap();
    let mut status = [0; 12];
    named.read_exact(&mut status).unwrap();
    assert_eq!(&status, b"HTTP/1.1 201", "the control: who stays is served, and came later");
    assert!(is_known(&attachd, &control) && !is_known(&attachd, &volume));
}

/// A stranger's connection is reset while it waits, and a member's takes its addresses: the row is the member's then, and
/// the stranger's request is still readable.
#[test]
fn a_request_left_by_a_stranger_is_not_a_members_who_connects_from_the_same_port() {
    let (lab, attachd) = on_tcp("");
    let (volume, control) = (lab.volume(), lab.volume());
    for volume in [&volume, &control] {
        intend(&attachd.api(), volume);
    }
    let withdrawal =
        |volume: &Volume| format!("DELETE /api/v1/intents/{} HTTP/1.1\r\nHost: localhost\r\n\r\n", volume.id);
    attachd.sigstop().unwrap();
    let mut stranger = by(STRANGER).connect_from(45_678).unwrap();
    // More than one request: the HTTP parser then does not look first whether the client is still there.
    stranger.write_all(withdrawal(&volume).repeat(2).as_bytes()).unwrap();
    lab::tcp::reset(stranger).unwrap();
    let mut named = by(NAMED).connect_from(45_678).unwrap();
    named.write_all(withdrawal(&control).as_bytes()).unwrap();
    attachd.sigcont().unwrap();
    let mut status = [0; 12];
    named.read_exact(&mut status).unwrap();
    assert_eq!(&status, b"HTTP/1.1 200", "the control: the port's present user is served");
    assert!(!is_known(&attachd, &control) && is_known(&attachd, &volume));
}

#[test]
fn browsers_and_foreign_hosts_are_refused_whatever_they_ask_and_no_answer_lets_a_page_read() {
    let (lab, attachd) = on_tcp("");
    let volume = lab.volume();
    let body = json!({ "volume_id": volume.id }).to_string();
    let cases = [
        ("POST", ("Origin", "http://evil.example"), "FROM_A_BROWSER"),
        ("POST", ("Origin", "null"), "FROM_A_BROWSER"),
        ("POST", ("Origin", "http://localhost:8090"), "FROM_A_BROWSER"),
        ("GET", ("Sec-Fetch-Site", "cross-site"), "FROM_A_BROWSER"),
        ("OPTIONS", ("Origin", "http://evil.example"), "FROM_A_BROWSER"),
        ("POST", ("Host", "evil.example:8090"), "FOREIGN_HOST"),
    ];
    for (method, header, code) in cases {
        let body = (method == "POST").then_some(&*body);
        let refused = by(NAMED).request(method, "/api/v1/intents", &[header], body).unwrap();
        assert_eq!((refused.status, &refused.json["code"]), (403, &json!(code)), "{header:?}: {}", refused.text);
        let allowed = |(name, _): &&(String, String)| name.starts_with("access-control");
        assert_eq!(refused.headers.iter().find(allowed), None);
    }
    assert!(!is_known(&attachd, &volume));
    for host in ["localhost", "127.0.0.1:8090", "[::1]:8090", "LOCALHOST:1234"] {
        by(NAMED).request("GET", "/api/v1/health", &[("Host", host)], None).unwrap().expect(200).unwrap();
    }
    by(NAMED).request("POST", "/api/v1/intents", &[], Some(&body)).unwrap().expect(201).unwrap();
    let preflight = by(NAMED).request("OPTIONS", "/api/v1/intents", &[], None).unwrap();
    assert_eq!((preflight.status, &preflight.json["code"]), (405, &json!("METHOD_NOT_ALLOWED")));
}

#[test]
fn an_address_that_is_taken_is_said_in_health_and_the_unix_socket_works() {
    let lab = with_nbdkit();
    lab.attachd_config(&format!("{CONFIG}[api]\ntcp = \"{ADDRESS}\"\n")).unwrap();
    let taken = std::net::TcpListener::bind(ADDRESS).unwrap();
    let mut attachd = start(&lab);
    let problems = problems_of_tcp(&attachd);
    assert!(
        problems.len() == 1 && problems[0].0 == "TCP_NOT_SERVED" && problems[0].1.contains(ADDRESS),
        "{problems:?}"
    );
    drop(taken);
    attachd.terminate().unwrap();
    let attachd = start(&lab);
    assert_eq!(problems_of_tcp(&attachd), [], "the control");
}

/// Returns the codes of health's problems about TCP, with their messages.
fn problems_of_tcp(attachd: &Attachd) -> Vec<(String, String)> {
    let problems = health(&attachd.api())["problems"].as_array().unwrap().clone();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let told = problems.iter().map(|problem| (text(&problem["code"]), text(&problem["message"])));
    told.filter(|(code, _)| code.starts_with("TCP_")).collect()
}

#[test]
fn a_listener_from_systemd_is_used_without_a_setting_and_callers_wait_while_attachd_restarts() {
    let lab = with_nbdkit();
    lab.attachd_config(&format!("{CONFIG}[api]\ntcp_uids = [{NAMED}]\n")).unwrap();
    let held = lab.held_socket().unwrap().and_tcp(ADDRESS.parse().unwrap()).unwrap();
    let mut attachd = lab.attachd_start_activated(bin(), &AttachdOptions::default(), &held).unwrap();
    let listeners = health(&attachd.api())["listeners"].clone();
    assert_eq!(listeners[1], json!({ "address": ADDRESS, "from": "systemd", "tls": false }));
    assert_eq!(by(STRANGER).get("/api/v1/health").unwrap().status, 403);
    let (before, after) = (lab.volume(), lab.volume());
    by(NAMED).post("/api/v1/intents", &json!({ "volume_id": before.id })).unwrap().expect(201).unwrap();
    attachd.kill9().unwrap();
    let mut waiting = by(NAMED).connect().unwrap();
    waiting.write_all(intent(&after).as_bytes()).unwrap();
    let attachd = lab.attachd_start_activated(bin(), &AttachdOptions::default(), &held).unwrap();
    let mut status = [0; 12];
    waiting.read_exact(&mut status).unwrap();
    assert_eq!(&status, b"HTTP/1.1 201", "asked while attachd was away");
    assert!(is_known(&attachd, &before) && is_known(&attachd, &after));
    assert_eq!(problems_of_tcp(&attachd), []);
}

#[test]
fn callers_are_refused_while_attachd_is_away_if_it_has_opened_the_address_itself() {
    let (lab, mut attachd) = on_tcp("");
    by(NAMED).get("/api/v1/health").unwrap().expect(200).unwrap();
    attachd.kill9().unwrap();
    assert!(by(NAMED).connect().is_err(), "the control for the test above");
    let _attachd = start(&lab);
    by(NAMED).get("/api/v1/health").unwrap().expect(200).unwrap();
}

#[test]
fn another_address_from_systemd_than_in_the_setting_is_served_and_said() {
    let lab = with_nbdkit();
    let other = "127.0.0.1:8091";
    let held = lab.held_socket().unwrap().and_tcp(ADDRESS.parse().unwrap()).unwrap();
    for (tcp, told) in [(other, 1), (ADDRESS, 0)] {
        lab.attachd_config(&format!("{CONFIG}[api]\ntcp = \"{tcp}\"\ntcp_uids = [{NAMED}]\n")).unwrap();
        let mut attachd = lab.attachd_start_activated(bin(), &AttachdOptions::default(), &held).unwrap();
        by(NAMED).get("/api/v1/health").unwrap().expect(200).unwrap();
        assert!(TcpStream::connect(other).is_err());
        let problems = problems_of_tcp(&attachd);
        assert_eq!(problems.len(), told, "{problems:?}");
        let names_both =
            |(code, text): &(String, String)| code == "TCP_DIFFERS" && text.contains(ADDRESS) && text.contains(other);
        assert!(problems.iter().all(names_both), "{problems:?}");
        attachd.terminate().unwrap();
    }
}

/// A user's share of connections on both transports together; as many may wait.
const CONNECTIONS: usize = 128;

const LIST: &[u8] = b"GET /api/v1/volumes HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Invariant 15, over both transports. How long the others wait is measured by `make bench` (`crowd`).
#[test]
fn a_user_who_holds_all_connections_that_it_may_on_both_transports_leaves_the_others_theirs() {
    let (lab, attachd) = on_tcp("");
    make_member(MEMBER);
    let api = attachd.api();
    for _ in 0..200 {
        intend(&api, &lab.volume());
    }
    // 100 readers that never read, then 300 connections that send nothing or half a request.
    let mut unix = api.by(NAMED).connections(200, SOON).unwrap();
    let mut tcp = by(NAMED).connections(200).unwrap();
    for n in 0..200 {
        let part = if n < 50 { LIST } else { &LIST[..(n % 2) * 20] };
        // What is beyond the share is refused and closed.
        let _ = (unix[n].write_all(part), tcp[n].write_all(part));
    }
    let refused = [by(NAMED).get("/api/v1/health").unwrap(), api.by(NAMED).get("/api/v1/health").unwrap()];
    for refused in refused {
        assert_eq!((refused.status, &refused.json["code"]), (503, &json!("TOO_MANY_CONNECTIONS")), "the control");
    }
    for path in ["/api/v1/health", "/api/v1/volumes"] {
        by(MEMBER).get(path).unwrap().expect(200).unwrap();
        api.by(MEMBER).get(path).unwrap().expect(200).unwrap();
        by(0).get(path).unwrap().expect(200).unwrap();
    }
    let volume = lab.volume();
    by(MEMBER).post("/api/v1/intents", &json!({ "volume_id": volume.id })).unwrap().expect(201).unwrap();
    api.by(MEMBER).delete(&format!("/api/v1/intents/{}", volume.id)).unwrap().expect(200).unwrap();
    drop((unix, tcp));
}

/// Returns how much the kernel keeps of what attachd has sent to this client, in bytes; `None`: the connection is gone.
fn kept_for(client: &TcpStream) -> Option<u64> {
    let table = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    let [ours, theirs] = [8090, client.local_addr().unwrap().port()].map(|port| format!(":{port:04X}"));
    let fields = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
    let mut rows = fields.filter(|row| row.len() > 4 && row[1].ends_with(&ours) && row[2].ends_with(&theirs));
    rows.next().map(|row| u64::from_str_radix(row[4].split(':').next().unwrap(), 16).unwrap())
}

#[test]
fn the_kernel_keeps_little_of_an_answer_that_is_not_read_and_not_for_long() {
    let (_lab, attachd) = on_tcp("");
    let api = attachd.api();
    std::thread::scope(|scope| {
        (0..8).for_each(|_| drop(scope.spawn(|| (0..250).for_each(|_| drop(intend(&api, &Volume::random()))))));
    });
    let length = by(NAMED).get("/api/v1/volumes").unwrap().text.len() as u64;
    let mut deaf = by(NAMED).connect_narrow().unwrap();
    deaf.write_all(LIST).unwrap();
    assert!(lab::watch::readable(&[deaf.as_fd()], SOON).unwrap());
    // Its answer is being sent: the next one comes after it.
    by(0).get("/api/v1/health").unwrap().expect(200).unwrap();
    let kept = kept_for(&deaf).unwrap();
    println!("of an answer of {length} bytes the kernel keeps {kept}");
    assert!(kept > 0 && kept < length / 3, "{kept} of {length}");
    // attachd cuts it after 10 s, and the kernel drops what is left at its next probe; by itself that would take minutes.
    // It tells the client nothing, so its table is looked at again and again.
    let deadline = Instant::now() + Duration::from_mins(1);
    while kept_for(&deaf).is_some() {
        assert!(Instant::now() < deadline, "the kernel still keeps {:?} bytes", kept_for(&deaf));
        let mut hang_up = [PollFd::new(&deaf, PollFlags::RDHUP)];
        rustix::event::poll(&mut hang_up, Some(&Timespec { tv_sec: 0, tv_nsec: 100_000_000 })).unwrap();
    }
}

/// Not even descriptors: each is closed when it is accepted.
#[test]
fn a_stranger_uses_up_nothing() {
    let (_lab, attachd) = on_tcp("");
    let open = || fs::read_dir(format!("/proc/{}/fd", attachd.pid().unwrap())).unwrap().count();
    by(NAMED).get("/api/v1/health").unwrap().expect(200).unwrap();
    let before = open();
    let strangers = by(STRANGER).connections(4 * CONNECTIONS).unwrap();
    // Connections are accepted in order, so the strangers' are all refused by now.
    by(NAMED).get("/api/v1/health").unwrap().expect(200).unwrap();
    assert!(open() <= before + 2, "{before} before, {} now", open());
    for mut stranger in strangers {
        let mut answer = String::new();
        stranger.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("NOT_LET_IN"), "{answer}");
    }
    let held = by(NAMED).connections(2 * CONNECTIONS).unwrap();
    by(0).get("/api/v1/health").unwrap().expect(200).unwrap();
    assert!(open() >= before + CONNECTIONS, "the control: who may come in holds as many");
    drop(held);
}

/// When the queue is full, the kernel does not answer, and the caller tries again only after a second.
#[test]
fn hundreds_of_callers_who_connect_at_one_moment_keep_no_other_out() {
    let (_lab, attachd) = on_tcp("");
    attachd.sigstop().unwrap();
    let crowd = by(NAMED).connections(600).unwrap();
    let caller = by(0).connect().unwrap();
    attachd.sigcont().unwrap();
    drop((crowd, caller));
    by(0).get("/api/v1/health").unwrap().expect(200).unwrap();
}

/// A refusal is read even by a client that sends much before it reads.
#[test]
fn a_stranger_reads_its_refusal_whenever_it_looks() {
    let (_lab, _attachd) = on_tcp("");
    let body = " ".repeat(60_000);
    for _ in 0..50 {
        let refused = by(STRANGER).request("POST", "/api/v1/intents", &[], Some(&body)).unwrap();
        assert_eq!(refused.json["code"], "NOT_LET_IN");
    }
}

/// What HTTP's parser and the router make of odd requests, over TCP as on the Unix socket.
#[test]
fn odd_requests_get_their_status_and_code_over_tcp_too() {
    let (_lab, attachd) = on_tcp("");
    let tls_hello = [0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03, b'\r', b'\n', b'\r', b'\n'];
    let long = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(20_000));
    let cases: [(&[u8], u16, &str); 12] = [
        (b"GET /api/v1/health HTTP/1.0\r\n\r\n", 200, ""),
        (b"HEAD /api/v1/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 200, ""),
        (b"OPTIONS /api/v1/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 405, "METHOD_NOT_ALLOWED"),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 404, "NO_SUCH_ROUTE"),
        (b"GET http://localhost:8090/api/v1/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 200, ""),
        (b"GET http://evil.example/api/v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n", 403, "FOREIGN_HOST"),
        (b"CONNECT localhost:8090 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 404, "NO_SUCH_ROUTE"),
        (b"GET /api/v1/volumes/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 404, "NO_SUCH_ROUTE"),
        (b"nonsense\r\n\r\n", 400, "BAD_HTTP"),
        (b"GET / HTTP/1.1\r\nHost\r\n\r\n", 400, "BAD_HTTP"),
        (&tls_hello, 400, "BAD_HTTP"),
        (long.as_bytes(), 431, "HEAD_TOO_LARGE"),
    ];
    for (request, status, code) in cases {
        let told = |answer: &[u8]| {
            let text = String::from_utf8_lossy(answer).into_owned();
            let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
            let status: u16 = head.split(' ').nth(1).unwrap_or("0").parse().unwrap();
            (status, serde_json::from_str::<Value>(body).unwrap_or_default()["code"].clone())
        };
        let mut stream = by(NAMED).connect().unwrap();
        stream.write_all(request).unwrap();
        let mut over_tcp = Vec::new();
        stream.read_to_end(&mut over_tcp).unwrap();
        let shown = String::from_utf8_lossy(&request[..request.len().min(80)]).into_owned();
        let expected = (status, if code.is_empty() { Value::Null } else { json!(code) });
        assert_eq!(told(&over_tcp), expected, "{shown:?}");
        if code != "FOREIGN_HOST" {
            assert_eq!(told(&attachd.api().raw(request, SOON).unwrap()), expected, "on the Unix socket: {shown:?}");
        }
    }
}
