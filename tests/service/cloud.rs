//! CloudStack as the real unit calls it: with its credentials, out of its sandbox.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::thread;

use serde_json::{Value, json};

use crate::host::{Host, append_to_config};

/// An address of this host that is not on the loopback network, as CloudStack's is.
const ADDRESS: &str = "10.1.1.5";

/// The VM that the configuration says this host is.
const VM: &str = "0d2f6d8e-58a3-4d20-9f3c-3c1f2a7d0c11";

/// Answers every request with an empty list, and keeps what it was sent.
fn cloudstack() -> (String, std::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind((ADDRESS, 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (tell, requests) = std::sync::mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(&stream);
            let mut length = 0;
            for line in reader.by_ref().lines() {
                let line = line.unwrap().to_ascii_lowercase();
                length = line.strip_prefix("content-length: ").map_or(length, |value| value.parse().unwrap());
                if line.is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let _ = tell.send(String::from_utf8(body).unwrap());
            let answer = "{\"listvirtualmachinesresponse\":{}}";
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len());
        }
    });
    (url, requests)
}

/// Has attachd call CloudStack, and returns its answer to the caller and the codes and messages in health. An attach to this
/// host first needs to know whether it is this VM.
fn attach(host: &Host) -> (Value, Vec<(String, String)>) {
    host.run("systemctl", &["restart", "attachd.service"]);
    let request = json!({ "type": "attach", "volume_id": host.lab().volume().id });
    let answer = host.api.post("/api/v1/operations", &request).unwrap().json;
    let health = host.api.get("/api/v1/health").unwrap().json;
    let text = |problem: &Value, name: &str| problem[name].as_str().unwrap().to_owned();
    let problems = health["problems"].as_array().unwrap().iter();
    let problems =
        problems.map(|problem| (text(problem, "code"), text(problem, "message") + " " + &text(problem, "hint")));
    let problems: Vec<_> = problems.collect();
    println!("{answer:#}\n{problems:#?}");
    (answer, problems)
}

fn said<'p>(problems: &'p [(String, String)], code: &str) -> Option<&'p str> {
    problems.iter().find(|(said, _)| said == code).map(|(_, text)| text.as_str())
}

#[test]
fn the_unit_reaches_cloudstack_with_its_credentials_only_with_the_shipped_drop_in_and_says_so() {
    let host = Host::installed();
    println!("{}", host.run("ls", &["-l", "/run/credentials/attachd.service"]));
    let key = "/run/credentials/attachd.service/cloudstack-key";
    assert_eq!(host.run("cat", &[key]).trim(), "", "the unit starts without the files");
    host.run("ip", &["link", "set", "lo", "up"]);
    host.run("ip", &["address", "add", &format!("{ADDRESS}/32"), "dev", "lo"]);
    let (url, requests) = cloudstack();
    append_to_config(&format!(
        "[host]\nvm_id = \"{VM}\"\n[cloudstack]\nurl = \"{url}\"\ninsecure = true\ntimeout_seconds = 4\n"
    ));

    let (answer, problems) = attach(&host);
    assert_eq!(answer["code"], "OWN_VM_UNKNOWN");
    assert!(said(&problems, "CLOUD_FILES").unwrap().contains("put it into /etc/attachd/cloudstack-key"));
    assert_eq!(said(&problems, "OWN_VM_UNKNOWN"), None, "one cause, one problem");
    for (name, text) in [("cloudstack-key", "THE-KEY"), ("cloudstack-secret", "THE-SECRET")] {
        let path = format!("/etc/attachd/{name}");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    }
    let (_, problems) = attach(&host);
    assert!(said(&problems, "CLOUD_KEPT_IN").unwrap().contains("/usr/share/attachd/cloudstack.conf"));
    assert!(requests.try_iter().next().is_none(), "nothing came out");

    let shipped = fs::read_to_string("/usr/share/attachd/cloudstack.conf").unwrap();
    let folder = "/etc/systemd/system/attachd.service.d";
    fs::write(format!("{folder}/cloudstack.conf"), shipped.replace("192.0.2.10", ADDRESS)).unwrap();
    host.run("systemctl", &["daemon-reload"]);
    let (answer, problems) = attach(&host);
    assert_eq!((said(&problems, "CLOUD_FILES"), said(&problems, "CLOUD_KEPT_IN")), (None, None), "the control");
    assert!(said(&problems, "OWN_VM_UNKNOWN").is_some());
    assert!(answer["error"].as_str().unwrap().contains("CloudStack shows no such VM"), "it was asked: {answer:#}");
    let request = requests.try_iter().next().unwrap();
    assert!(request.contains("apikey=THE-KEY&") && !request.contains("THE-SECRET"), "{request}");
    assert!(!host.story().contains("THE-SECRET") && !host.story().contains("THE-KEY"));
}
