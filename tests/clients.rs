//! The limits of one client of the API. A client that reads nothing, sends too much, hangs up or opens many
//! connections does not affect other users.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::*;
use lab::{Api, Attachd, Volume};
use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::{Value, json};

/// Two users who are neither root nor the daemon.
const SOMEBODY: u32 = 60_001;
const SOMEBODY_ELSE: u32 = 60_002;

/// A user's share of connections, and of requests that wait.
const CONNECTIONS: usize = 128;
const WAITING: usize = 64;

fn resident_kib(attachd: &Attachd) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", attachd.pid().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Sends a request and reads nothing.
fn ask(api: &Api, method: &str, path: &str) -> UnixStream {
    let mut stream = api.connect(SOON).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    stream
}

/// Returns what is received until the daemon closes the connection.
fn rest_of(mut stream: UnixStream) -> Vec<u8> {
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

fn hung_up(stream: &UnixStream) -> bool {
    let mut poll = [PollFd::new(stream, PollFlags::RDHUP)];
    rustix::event::poll(&mut poll, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap();
    poll[0].revents().contains(PollFlags::RDHUP)
}

/// Returns the status and the code of an error response.
fn refusal(answer: &[u8]) -> (String, Value) {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).unwrap_or_default().to_owned();
    (status, serde_json::from_str::<Value>(body).unwrap_or_default()["code"].clone())
}

/// Adds many intents, so that a list of them is long.
fn fill(api: &Api, count: usize) {
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..count / 8).for_each(|_| drop(intend(api, &Volume::random()))));
        }
    });
}

/// Invariant 15: answers that are not read cost little memory and delay only their own user.
#[test]
fn clients_that_never_read_delay_no_other_user_and_are_disconnected() {
    let (_lab, attachd, api) = up();
    fill(&api, 2000);
    let length = api.get("/api/v1/volumes").unwrap().text.len();
    let before = resident_kib(&attachd);
    let deaf: Vec<_> = (0..CONNECTIONS).map(|_| ask(&api.by(SOMEBODY), "GET", "/api/v1/volumes")).collect();
    let begun = Instant::now();
    // Two answers are offered, which is this user's share. Both are longer than the kernel's buffer.
    for path in ["/api/v1/health", "/api/v1/volumes", "/api/v1/volumes"] {
        api.get(path).unwrap().expect(200).unwrap();
        api.by(SOMEBODY_ELSE).get(path).unwrap().expect(200).unwrap();
    }
    let volume = Volume::random();
    intend(&api.by(SOMEBODY_ELSE), &volume);
    let (took, grown) = (begun.elapsed(), resident_kib(&attachd) - before);
    println!("a list of {length} bytes; others were answered in {took:.1?}; memory grew by {grown} KiB");
    assert!(!hung_up(&deaf[0]), "all that while the first was not cut yet");
    assert!(
        grown < CONNECTIONS * length / 1024 / 4,
        "{grown} KiB, and all the answers have {} KiB",
        CONNECTIONS * length / 1024
    );
    // The third request is served when one of the first two is disconnected, and these cannot be if they are read.
    let mut deaf = deaf.into_iter();
    let (first, second, mut third) = (deaf.next().unwrap(), deaf.next().unwrap(), deaf.next().unwrap());
    let mut status = [0; 12];
    third.read_exact(&mut status).unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");
    let [first, second] = [first, second].map(|stream| rest_of(stream).len());
    println!("after {:.1?}, cut after {first} and {second} bytes", begun.elapsed());
    assert!(first < length, "the control: there was an answer that nobody took");
}

#[test]
fn a_user_at_its_share_of_connections_waits_or_is_refused_and_others_are_served() {
    let (_lab, _attachd, api) = up();
    let somebody = api.by(SOMEBODY);
    // Connections are accepted in order. The first half is idle, which is allowed for ten seconds; this test takes
    // less.
    let mut idle = somebody.connections(2 * CONNECTIONS, SOON).unwrap();
    let mut waiting = idle.split_off(CONNECTIONS);
    waiting[0].write_all(b"GET /api/v1/health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let refused = somebody.get("/api/v1/health").unwrap();
    assert_eq!((refused.status, &refused.json["code"]), (503, &json!("TOO_MANY_CONNECTIONS")), "{}", refused.text);
    assert_eq!(refused.header("retry-after"), Some("1"));
    for other in [&api, &api.by(SOMEBODY_ELSE)] {
        other.get("/api/v1/health").unwrap().expect(200).unwrap();
    }
    let nothing_yet = lab::watch::readable(&[waiting[0].as_fd()], Duration::ZERO).unwrap();
    assert!(!nothing_yet, "the control: it has no place yet");
    // A waiting connection is served as soon as one of its user's slots is free, in order.
    drop(idle.pop());
    let mut status = [0; 12];
    waiting[0].read_exact(&mut status).unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");
}

#[test]
fn a_user_at_its_share_of_waiting_requests_leaves_slots_for_others() {
    let (_lab, _attachd, api) = up();
    let somebody = api.by(SOMEBODY);
    let _listening: Vec<_> = (0..WAITING).map(|_| somebody.events().unwrap()).collect();
    let refused = somebody.get("/api/v1/events").unwrap();
    assert_eq!((refused.status, &refused.json["code"]), (503, &json!("TOO_MANY_LISTENERS")));
    somebody.get("/api/v1/health").unwrap().expect(200).unwrap();
    let _other = api.by(SOMEBODY_ELSE).events().unwrap();
    let _root = api.events().unwrap();
}

/// hyper notices the end of a connection only after it has read everything that was sent before.
#[test]
fn a_waiting_client_that_hangs_up_releases_its_slot_whatever_it_has_sent() {
    let (lab, _attachd, api) = up();
    let volume = lab.volume();
    intend(&api, &volume);
    let somebody = api.by(SOMEBODY);
    for path in [&format!("/api/v1/volumes/{}?wait=ready&timeout_seconds=3600", volume.id), "/api/v1/events"] {
        let waiting: Vec<_> = (0..WAITING)
            .map(|_| {
                let mut stream = ask(&somebody, "GET", path);
                stream.write_all(b"GET /api/v1/health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
                stream
            })
            .collect();
        // Connections are accepted in order, so all earlier ones have their slots.
        assert_eq!(somebody.get("/api/v1/events").unwrap().status, 503, "the control: its share is used up");
        drop(waiting);
        let begun = Instant::now();
        while somebody.events().is_err() {
            assert!(begun.elapsed() < SOON, "{path}: the places are not given back");
        }
    }
}

/// Sends a whole request with a body, and reads only after that. No write may fail.
fn sent_whole(api: &Api, request: &str, body: &[u8]) -> (String, Value) {
    let mut stream = api.connect(SOON).unwrap();
    write!(stream, "{request} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())
        .unwrap();
    stream.write_all(body).unwrap_or_else(|error| panic!("{request}: {error}"));
    refusal(&rest_of(stream))
}

#[test]
fn a_client_with_a_long_body_gets_the_refusal_and_not_a_broken_pipe() {
    let (lab, attachd, api) = up();
    let id = lab.volume().id;
    let before = resident_kib(&attachd);
    let long = vec![b' '; 10 << 20];
    for (request, status, code) in [
        ("POST /api/v1/intents", "413", "BODY_TOO_LARGE"),
        ("POST /api/v1/nothing", "413", "BODY_TOO_LARGE"),
        (&format!("DELETE /api/v1/intents/{id}"), "413", "BODY_TOO_LARGE"),
    ] {
        assert_eq!(sent_whole(&api, request, &long), (status.to_owned(), json!(code)), "{request}");
    }
    assert!(resident_kib(&attachd) - before < 5 * 1024, "none of it is kept");
    // This is the longest body that is read at all, and these requests need none.
    for (request, status, code) in [
        ("POST /api/v1/nothing", "404", "NO_SUCH_ROUTE"),
        ("PUT /api/v1/intents", "405", "METHOD_NOT_ALLOWED"),
        ("DELETE /api/v1/intents/vol-1", "400", "NOT_A_VOLUME_ID"),
        (&format!("DELETE /api/v1/intents/{id}"), "404", "NO_SUCH_INTENT"),
    ] {
        assert_eq!(sent_whole(&api, request, &long[..64 * 1024]), (status.to_owned(), json!(code)), "{request}");
    }
    // A client that announces its size first is refused before it sends the body.
    let mut stream = api.connect(SOON).unwrap();
    write!(
        stream,
        "POST /api/v1/intents HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\nExpect: 100-continue\r\n\r\n",
        1 << 20
    )
    .unwrap();
    assert_eq!(refusal(&rest_of(stream)), ("413".to_owned(), json!("BODY_TOO_LARGE")));
}

#[test]
fn an_unused_body_is_not_read_as_the_next_request() {
    let (_lab, _attachd, api) = up();
    let mut stream = api.connect(SOON).unwrap();
    let inner = "GET /api/v1/intents HTTP/1.1\r\nHost: x\r\n\r\n";
    write!(stream, "PUT /api/v1/volumes HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{inner}", inner.len())
        .unwrap();
    write!(stream, "GET /api/v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let answers = String::from_utf8(rest_of(stream)).unwrap();
    let statuses: Vec<&str> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    assert_eq!(statuses, ["405", "200"], "{answers}");
    assert!(answers.contains("\"resync\""), "the second is health's: {answers}");
}

#[test]
fn requests_refused_by_the_http_parser_get_a_code_and_a_message_too() {
    let (_lab, _attachd, api) = up();
    let ok = "GET /api/v1/health HTTP/1.1\r\nHost: x\r\n";
    for (request, status, code) in [
        ("\x16\x03\x01\x02\r\n\r\n".to_owned(), "400", "BAD_HTTP"),
        (format!("{ok}X : a\r\n\r\n"), "400", "BAD_HTTP"),
        (format!("{ok}X: {}\r\n\r\n", "x".repeat(100_000)), "431", "HEAD_TOO_LARGE"),
        (format!("{ok}{}\r\n", "X-A: b\r\n".repeat(200)), "431", "HEAD_TOO_LARGE"),
        // The same after an answer on the same connection.
        (format!("{ok}\r\n{ok}X : a\r\n\r\n"), "200", ""),
    ] {
        let answers = api.raw(request.as_bytes(), SOON).unwrap();
        let shown = String::from_utf8_lossy(&answers);
        let last = shown.rfind("HTTP/1.1 ").map(|at| &answers[at..]).unwrap_or_default();
        if code.is_empty() {
            assert!(shown.starts_with("HTTP/1.1 200"), "{shown}");
            assert_eq!(refusal(last), ("400".to_owned(), json!("BAD_HTTP")), "{shown}");
        } else {
            assert_eq!(refusal(last), (status.to_owned(), json!(code)), "{shown}");
        }
    }
    // For two correct requests the response is unchanged.
    let mut stream = BufReader::new(ask(&api, "GET", "/api/v1/health"));
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    assert_eq!(line, "HTTP/1.1 200 OK\r\n");
}

/// Invariant 15.
#[test]
fn no_user_has_more_intents_than_allowed_and_a_withdrawn_one_makes_room() {
    let lab = with_nbdkit();
    lab.attachd_config(&format!("{CONFIG}[limits]\nintents = 4\nintents_per_user = 2\n")).unwrap();
    let mut attachd = start(&lab);
    let api = attachd.api();
    let somebody = api.by(SOMEBODY);
    let [first, second] = [lab.volume(), lab.volume()];
    for volume in [&first, &second] {
        intend(&somebody, volume);
    }
    let too_many = |api: &Api, used: u32| {
        let reply = api.post("/api/v1/intents", &json!({ "volume_id": lab.volume().id })).unwrap().expect(429).unwrap();
        assert_eq!(reply["code"], "TOO_MANY_INTENTS");
        assert_eq!(reply["details"], json!({ "used": used, "limit": used }), "{reply:#}");
    };
    too_many(&somebody, 2);
    let other = lab.volume();
    intend(&api.by(SOMEBODY_ELSE), &other);
    intend(&api, &lab.volume());
    too_many(&api, 4);
    withdraw(&api, &other);
    // The same intent again is known, so it does not count as a new one.
    let again = somebody.post("/api/v1/intents", &json!({ "volume_id": first.id })).unwrap();
    assert_eq!(again.status, 200, "{}", again.text);
    too_many(&somebody, 2);
    // Intents on record count after a restart too.
    attachd.terminate().unwrap();
    let _attachd = start(&lab);
    too_many(&somebody, 2);
    withdraw(&somebody, &second);
    intend(&somebody, &second);
    intend(&api, &other);
    too_many(&api, 4);
}

/// In a list of any number of pages, each volume appears exactly once and in order.
#[test]
fn a_long_list_has_every_volume_once_in_order_while_others_come_and_go() {
    let (lab, _attachd, api) = up();
    // A page has 64 volumes: this is one more than two pages.
    let mut ids: Vec<String> = (0..129).map(|_| lab.volume().id).collect();
    let intend = |id: &str| api.post("/api/v1/intents", &json!({ "volume_id": id })).unwrap().expect(201).unwrap();
    let listed = |what: &str| -> Vec<String> {
        let list = api.get(&format!("/api/v1/{what}")).unwrap().expect(200).unwrap();
        let all = list[what].as_array().unwrap();
        assert_eq!(list["count"], all.len());
        all.iter().map(|one| one["volume_id"].as_str().unwrap().to_owned()).collect()
    };
    for (n, id) in ids.iter().enumerate() {
        if n == 64 {
            assert_eq!(listed("volumes").len(), 64, "exactly one page");
        }
        intend(id);
    }
    assert_eq!(listed("intents"), ids, "the oldest first");
    ids.sort_unstable();
    assert_eq!(listed("volumes"), ids, "by id");
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let restless = lab.volume().id;
        scope.spawn(|| {
            let restless = restless;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                intend(&restless);
                api.delete(&format!("/api/v1/intents/{restless}")).unwrap().expect(200).unwrap();
            }
        });
        let stay = ids.iter().collect::<std::collections::BTreeSet<_>>();
        for _ in 0..20 {
            let all = listed("volumes");
            assert!(all.is_sorted() && all.windows(2).all(|pair| pair[0] != pair[1]));
            assert_eq!(all.iter().filter(|id| stay.contains(id)).count(), ids.len());
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let state = api.get("/api/v1/volumes?state=lost").unwrap().expect(200).unwrap();
    assert_eq!(state["count"], 0, "a filter goes through all pages");
}
