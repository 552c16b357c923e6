//! The OpenAPI document and the daemon agree: schemathesis sends valid and invalid requests of the document and
//! checks every answer against it.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use attachd::reason::{Code, SaidAt, StoryStep};
use common::cloud::lab_in_cloud;
use common::*;
use lab::child::Proc;
use lab::{Api, Lab};
use serde_json::{Value, json};

/// schemathesis, as `make setup-test` installs it.
const SCHEMATHESIS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/schemathesis/bin/schemathesis");

/// The configuration of schemathesis: facts that the document does not contain.
const CONFIG_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openapi/schemathesis.toml");

/// Hooks that keep requests from waiting for events that do not come.
const HOOKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openapi/hooks.py");

/// The limit of requests of each kind; `ATTACHD_OPENAPI_EXAMPLES` in the environment sets another one.
const EXAMPLES: u32 = 100;

/// The time limit of one run, on a busy machine; the number of examples limits it too.
const LIMIT: Duration = Duration::from_mins(4);

/// Returns the limit of requests of each kind, and how many times the usual one it is.
fn examples(usual: u32) -> (String, u32) {
    let wished = std::env::var("ATTACHD_OPENAPI_EXAMPLES").ok();
    let wished = wished.map_or(usual, |wished| wished.parse().expect("ATTACHD_OPENAPI_EXAMPLES is a number"));
    (wished.to_string(), wished.div_ceil(EXAMPLES).max(1))
}

/// Starts a proxy, because schemathesis supports only TCP. It passes each connection on to attachd's socket. Returns
/// the address.
fn bridge(api: &Api) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let socket = api.socket().to_owned();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(daemon) = UnixStream::connect(&socket) else { continue };
            let (to_daemon, from_client) = (daemon.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || {
                pass(from_client, &to_daemon);
                let _ = to_daemon.shutdown(Shutdown::Both);
            });
            std::thread::spawn(move || {
                pass(daemon, &client);
                let _: io::Result<()> = TcpStream::shutdown(&client, Shutdown::Both);
            });
        }
    });
    address
}

/// Copies until either side closes.
fn pass(mut from: impl Read, mut to: impl Write) {
    let mut piece = [0; 16 * 1024];
    while let Ok(n @ 1..) = from.read(&mut piece) {
        if to.write_all(&piece[..n]).is_err() {
            return;
        }
    }
}

/// Tests the daemon against this document. Returns what was found; `None` if nothing was.
fn findings(lab: &Lab, document: &Path, address: &str, more: &[&str], limit: Duration) -> Option<String> {
    assert!(Path::new(SCHEMATHESIS).exists(), "schemathesis is not installed: run `make setup-test`");
    let said = lab.dir().join("schemathesis.txt");
    let output = fs::File::create(&said).unwrap();
    let mut command = Command::new(SCHEMATHESIS);
    command
        .args([
            "--config-file",
            CONFIG_FILE,
            "run",
            &document.to_string_lossy(),
            "--url",
            address,
            "--checks",
            "all",
            "--seed",
            "20",
            // One worker: Debian 12's Python counts the depth of its syntax trees for all threads together
            // (cpython#106905), so two threads that build a tree at the same time sometimes fail.
            "--workers",
            "1",
        ])
        .args(["--continue-on-failure", "--request-timeout", "10", "--suppress-health-check", "all"])
        .args(more)
        .env("SCHEMATHESIS_HOOKS", HOOKS)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("NO_COLOR", "1")
        .current_dir(lab.dir())
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output);
    let begun = Instant::now();
    let status = Proc::spawn("schemathesis", &mut command).unwrap().wait(limit).unwrap();
    let text = fs::read_to_string(&said).unwrap();
    let counts =
        text.lines().filter(|line| line.contains("generated") || line.contains("(in ") || line.contains("covered"));
    println!("{:.1?}: {}", begun.elapsed(), counts.map(str::trim).collect::<Vec<_>>().join("; "));
    assert!(matches!(status.code(), Some(0 | 1)), "{status}: schemathesis could not do its work:\n{text}");
    (!status.success()).then_some(text)
}

fn written(lab: &Lab, name: &str, document: &Value) -> PathBuf {
    let path = lab.dir().join(name);
    fs::write(&path, document.to_string()).unwrap();
    path
}

/// The daemon's document without the event stream, which never ends: schemathesis reads whole answers.
fn readable(api: &Api) -> Value {
    let mut document = api.get("/api/v1/openapi.json").unwrap().expect(200).unwrap();
    document["paths"].as_object_mut().unwrap().remove("/api/v1/events").unwrap();
    document
}

/// Tests the daemon against its document with all phases.
fn nothing_is_found(lab: &Lab, document: &Value, address: &str, usual: u32, more: &[&str]) {
    let (examples, times) = examples(usual);
    let document = written(lab, "openapi.json", document);
    let found = findings(lab, &document, address, &[&["--max-examples", &examples], more].concat(), LIMIT * times);
    assert!(found.is_none(), "{}", found.unwrap_or_default());
}

#[test]
fn the_openapi_document_matches_a_daemon_that_calls_cloudstack() {
    let (lab, cloud) = lab_in_cloud();
    let attachd = start(&lab);
    let api = attachd.api();
    // Some volumes whose ids callers of an earlier request can use: operations that complete, and some that fail.
    for _ in 0..3 {
        let volume = lab.volume();
        cloud.add(&volume, MIB);
        let body = json!({ "type": "attach", "volume_id": volume.id });
        let begun = api.post("/api/v1/operations", &body).unwrap().expect(201).unwrap();
        let path = format!("/api/v1/operations/{}?wait=done", begun["id"].as_str().unwrap());
        assert_eq!(api.get(&path).unwrap().json["status"], "completed");
    }
    let before = cloud.calls().len();
    // An operation that is deleted is cancelled, and can still be read: one check takes that for a mistake.
    let but = ["--exclude-checks", "use_after_free"];
    nothing_is_found(&lab, &readable(&api), &bridge(&api), EXAMPLES / 2, &but);
    assert!(cloud.calls().len() > before, "the control: CloudStack was called");
    drop(attachd);
}

#[test]
fn the_openapi_document_matches_the_daemon() {
    let (lab, attachd, api) = up();
    let (_volume, _disk) = served(&lab, &api);
    (0..3).for_each(|_| drop(intend(&api, &lab.volume())));
    let document = readable(&api);
    let address = bridge(&api);

    // The control: documents with one mistake each.
    let only_intents = ["--include-path", "/api/v1/intents", "--phases", "coverage,fuzzing", "--max-examples", "10"];
    let mut wrong = document.clone();
    wrong["components"]["schemas"]["IntentView"]["properties"]["serial"] = json!({ "type": "integer" });
    wrong["paths"]["/api/v1/intents"]["post"]["responses"].as_object_mut().unwrap().remove("422").unwrap();
    let found =
        findings(&lab, &written(&lab, "wrong.json", &wrong), &address, &only_intents, LIMIT).unwrap_or_default();
    for finding in ["Response violates schema", "Undocumented status code"] {
        assert!(found.contains(finding), "{finding} is found: {found}");
    }

    nothing_is_found(&lab, &document, &address, EXAMPLES, &[]);
    // The daemon runs until it is stopped, and a restart must keep the volumes that schemathesis has left; the lab
    // checks both.
    drop(attachd);
}

#[test]
fn the_openapi_document_names_each_code_and_each_step_of_the_table_and_no_other() {
    let (_lab, _attachd, api) = up();
    let document = api.get("/api/v1/openapi.json").unwrap().expect(200).unwrap();
    let named = |schema: &str| -> BTreeSet<String> {
        let names = document["components"]["schemas"][schema]["enum"].as_array();
        let names = names.unwrap_or_else(|| panic!("{schema} has its names in the document"));
        names.iter().map(|name| name.as_str().unwrap().to_owned()).collect()
    };
    let codes = |is_said: fn(Code) -> bool| -> BTreeSet<String> {
        Code::ALL.iter().filter(|code| is_said(**code)).map(ToString::to_string).collect()
    };
    assert_eq!(named("ReasonCode"), codes(Code::is_of_volumes));
    assert_eq!(named("ProblemCode"), codes(Code::is_of_health));
    assert_eq!(named("RemarkCode"), codes(|code| code.is_said(SaidAt::Remark)));
    assert_eq!(named("ErrorCode"), codes(|code| code.status().is_some()));
    assert_eq!(named("StoryStep"), StoryStep::ALL.iter().map(ToString::to_string).collect());

    // The status of every code that an answer's description names must be the table's.
    let mut told = BTreeSet::new();
    for path in document["paths"].as_object().unwrap().values() {
        for operation in path.as_object().into_iter().flatten().map(|(_, operation)| operation) {
            for (status, answer) in operation["responses"].as_object().into_iter().flatten() {
                let text = answer["description"].as_str().unwrap_or_default();
                let words = text.split(|c: char| c != '_' && !c.is_ascii_uppercase()).filter(|word| word.len() > 3);
                for word in words {
                    let code = Code::from_name(word).unwrap_or_else(|| panic!("{status}: {word} is a code"));
                    assert_eq!(code.status().map(|status| status.to_string()), Some(status.clone()), "{code}");
                    told.insert(code);
                }
            }
        }
    }
    assert!(told.contains(&Code::SerialTaken) && told.contains(&Code::StoreFailed), "{told:?}");
}
