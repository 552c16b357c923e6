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

/// The limit of requests of each kind.
const EXAMPLES: &str = "100";

/// The time limit of one run, on a busy machine; the number of examples limits it too.
const LIMIT: Duration = Duration::from_mins(4);

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
fn findings(lab: &Lab, document: &Path, address: &str, more: &[&str]) -> Option<String> {
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
    let status = Proc::spawn("schemathesis", &mut command).unwrap().wait(LIMIT).unwrap();
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

#[test]
fn the_openapi_document_matches_the_daemon() {
    let (lab, attachd, api) = up();
    let (_volume, _disk) = served(&lab, &api);
    (0..3).for_each(|_| drop(intend(&api, &lab.volume())));
    let mut document = api.get("/api/v1/openapi.json").unwrap().expect(200).unwrap();
    // The event stream never ends, and schemathesis reads whole answers.
    document["paths"].as_object_mut().unwrap().remove("/api/v1/events").unwrap();
    let address = bridge(&api);

    // The control: documents with one mistake each.
    let only_intents = ["--include-path", "/api/v1/intents", "--phases", "coverage,fuzzing", "--max-examples", "10"];
    let mut wrong = document.clone();
    wrong["components"]["schemas"]["IntentView"]["properties"]["serial"] = json!({ "type": "integer" });
    wrong["paths"]["/api/v1/intents"]["post"]["responses"].as_object_mut().unwrap().remove("422").unwrap();
    let found = findings(&lab, &written(&lab, "wrong.json", &wrong), &address, &only_intents).unwrap_or_default();
    for finding in ["Response violates schema", "Undocumented status code"] {
        assert!(found.contains(finding), "{finding} is found: {found}");
    }

    let found = findings(&lab, &written(&lab, "openapi.json", &document), &address, &["--max-examples", EXAMPLES]);
    assert!(found.is_none(), "{}", found.unwrap_or_default());
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
