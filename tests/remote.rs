//! The API for other hosts: TLS, and a token with each request.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::*;
use lab::{Attachd, Certificates, Lab, people};
use openssl::ssl::{SslConnector, SslMethod, SslStream};
use serde_json::{Value, json};

/// An address that is not the loopback's. The lab has it on its only interface.
const IP: &str = "192.0.2.1";
const ADDRESS: &str = "192.0.2.1:8090";

const TOKEN: &str = "first-token-0123456789";
const SECOND: &str = "second-token-0123456789";

struct Site {
    lab: Lab,
    tls: Certificates,
}

impl Site {
    /// Makes the files, and a configuration that names them.
    fn new() -> Self {
        let lab = with_nbdkit();
        let added = Command::new("ip").args(["address", "add", IP, "dev", "lo"]).status().unwrap();
        assert!(added.success());
        let tls = Certificates::make(&lab.dir().join("tls"), IP).unwrap();
        let site = Self { lab, tls };
        site.make_readable("server-key.pem");
        site.write_token(TOKEN, 0o600);
        let file = |name| site.tls.file(name);
        let text = format!(
            "{CONFIG}[api]\ntcp = \"{ADDRESS}\"\ntls_certificate = \"{}\"\ntls_key = \"{}\"\ntoken_file = \"{}\"\n",
            file("server-cert.pem"),
            file("server-key.pem"),
            file("token")
        );
        site.lab.attachd_config(&text).unwrap();
        site
    }

    fn write_token(&self, token: &str, mode: u32) {
        let new = PathBuf::from(self.tls.file("token.new"));
        fs::write(&new, format!("{token}\n")).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(mode)).unwrap();
        fs::rename(&new, self.tls.file("token")).unwrap();
        self.make_readable("token");
    }

    fn make_readable(&self, name: &str) {
        chown(self.tls.file(name), Some(people::ATTACHD.id), Some(people::ATTACHD.id)).unwrap();
    }

    fn tls(&self) -> SslStream<TcpStream> {
        let mut connector = SslConnector::builder(SslMethod::tls_client()).unwrap();
        connector.set_ca_file(self.tls.file("ca-cert.pem")).unwrap();
        let stream = TcpStream::connect(ADDRESS).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        connector.build().connect(IP, stream).unwrap()
    }

    /// Sends a request with these header lines and returns the status, the header and the body.
    fn ask(&self, request: &str, headers: &str) -> (u16, String, Value) {
        let mut stream = self.tls();
        write!(stream, "{request} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n").unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_owned(), serde_json::from_str(body).unwrap_or_default())
    }

    fn status(&self, token: &str) -> u16 {
        self.ask("GET /api/v1/health", &format!("Host: {ADDRESS}\r\nAuthorization: Bearer {token}\r\n")).0
    }
}

fn problems(attachd: &Attachd, code: &str) -> Vec<Value> {
    let problems = health(&attachd.api())["problems"].as_array().unwrap().clone();
    problems.into_iter().filter(|problem| problem["code"] == code).collect()
}

#[test]
fn a_caller_from_another_host_needs_tls_and_the_token_and_the_token_is_in_no_message() {
    let site = Site::new();
    let attachd = start(&site.lab);
    let listeners = health(&attachd.api())["listeners"].clone();
    assert_eq!(listeners[1], json!({ "address": ADDRESS, "from": "attachd", "tls": true }));
    let volume = site.lab.volume();
    let (status, _, body) = site.ask(
        &format!("GET /api/v1/volumes/{}", volume.id),
        &format!("Host: {ADDRESS}\r\nAuthorization: bearer {TOKEN}\r\n"),
    );
    assert_eq!(
        (status, &body["code"]),
        (404, &json!("NO_SUCH_INTENT")),
        "the control: the scheme's case counts for nothing"
    );
    for header in [
        String::new(),
        format!("Authorization: Bearer {TOKEN}x\r\n"),
        format!("Authorization: Bearer {}\r\n", &TOKEN[1..]),
        format!("Authorization: Basic {TOKEN}\r\n"),
        format!("Authorization: {TOKEN}\r\n"),
        "Authorization: Bearer\r\n".to_owned(),
        format!("Authorization: Bearer {SECOND}\r\nAuthorization: Bearer {TOKEN}\r\n"),
    ] {
        let (status, head, body) = site.ask("DELETE /api/v1/intents/x", &format!("Host: {ADDRESS}\r\n{header}"));
        assert_eq!((status, &body["code"]), (401, &json!("TOKEN_NEEDED")), "{header}");
        assert!(head.contains("www-authenticate: Bearer"), "{head}");
        assert!(!body.to_string().contains(TOKEN), "{body}");
    }
    let (status, _, body) =
        site.ask("GET /api/v1/health", &format!("Host: evil.example\r\nAuthorization: Bearer {TOKEN}\r\n"));
    assert_eq!((status, &body["code"]), (403, &json!("FOREIGN_HOST")));
    assert!(!attachd.stderr_text().contains("token-0123456789"));
}

#[test]
fn http_in_the_clear_at_a_tls_address_is_told_so_and_garbage_is_closed() {
    let site = Site::new();
    let _attachd = start(&site.lab);
    let told = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(ADDRESS).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    let answer = told(b"GET /api/v1/health HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(
        answer.starts_with("HTTP/1.1 400") && answer.contains("https://") && answer.contains("BAD_HTTP"),
        "{answer}"
    );
    assert!(!told(&[0x80; 300]).contains("HTTP"));
    assert_eq!(site.status(TOKEN), 200, "the control");
}

#[test]
fn files_that_change_count_for_the_next_connection_and_bad_ones_leave_the_old_in_use() {
    let site = Site::new();
    let attachd = start(&site.lab);
    assert_eq!((site.status(TOKEN), site.status(SECOND)), (200, 401));
    site.write_token(SECOND, 0o600);
    assert_eq!((site.status(TOKEN), site.status(SECOND)), (401, 200));
    site.write_token(TOKEN, 0o644);
    assert_eq!((site.status(TOKEN), site.status(SECOND)), (401, 200), "everybody could read it");
    let told = problems(&attachd, "API_FILES");
    assert!(told.len() == 1 && told[0]["message"].as_str().unwrap().contains("chmod 0640"), "{told:?}");
    site.write_token(TOKEN, 0o640);
    assert_eq!((site.status(TOKEN), site.status(SECOND)), (200, 401));
    assert_eq!(problems(&attachd, "API_FILES"), Vec::<Value>::new());
    let before = site.tls().ssl().peer_certificate().unwrap().to_der().unwrap();
    Certificates::make(Path::new(site.tls.folder()), IP).unwrap();
    site.make_readable("server-key.pem");
    let after = site.tls().ssl().peer_certificate().unwrap().to_der().unwrap();
    assert_ne!(before, after, "another certificate");
}

#[test]
fn files_that_every_user_can_read_are_refused_by_check_config_and_at_the_start() {
    let site = Site::new();
    let check = || {
        let output = Command::new(bin()).arg("check-config").output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert!(check().0, "the control: {}", check().1);
    for (name, key) in [("token", "token_file"), ("server-key.pem", "tls_key")] {
        let path = site.tls.file(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
        let (valid, text) = check();
        assert!(!valid && text.contains(&format!("[api] {key}")) && text.contains("chmod 0600"), "{text}");
        let mut attachd = start(&site.lab);
        let told = problems(&attachd, "TCP_NOT_SERVED");
        assert!(told.len() == 1 && told[0]["message"].as_str().unwrap().contains("chmod 0600"), "{told:?}");
        assert!(TcpStream::connect(ADDRESS).is_err());
        attachd.terminate().unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
}
