//! TLS towards the NBD server: exports are proven only over TLS, and refused without it.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use common::*;
use lab::{Lab, people};
use serde_json::Value;

/// Starts attachd with this configuration, and returns the reason why it does not trust the server.
fn not_believed(lab: &Lab, config: &str) -> Value {
    lab.attachd_config(config).unwrap();
    let attachd = start(lab);
    let mut events = attachd.api().events().unwrap();
    let _attached = attached(lab, &attachd.api());
    let refused = events.wait_for(|event| event["reason"]["code"] == "BACKEND_DOWN", SOON).unwrap();
    println!("{}", refused["reason"]);
    refused["reason"].clone()
}

#[test]
fn an_export_under_tls_is_proven_with_certificates_and_refused_in_the_clear() {
    let mut lab = Lab::new();
    let certificates = certificates(&lab, "certificates");
    serve_with(&mut lab, &certificates);
    lab.attachd_config(&config_with(&certificates)).unwrap();
    let mut attachd = start(&lab);
    let (volume, _disk) = served(&lab, &attachd.api());
    assert!(!lab.nbd_connects(&volume.export()), "the control: in the clear the server gives nothing");
    attachd.terminate().unwrap();

    lab.attachd_config(CONFIG).unwrap();
    let attachd = start(&lab);
    let mut events = attachd.api().events().unwrap();
    let mut shown = show(&attachd.api(), &volume);
    if shown["reason"].is_null() {
        shown = events.wait_for(|event| !event["reason"].is_null(), SOON).unwrap();
    }
    assert_eq!(shown["reason"]["code"], "EXPORT_REFUSED", "{shown:#}");
    assert!(shown["reason"]["message"].as_str().unwrap().contains("it wants TLS"), "{shown:#}");
}

#[test]
fn a_server_with_a_certificate_of_another_authority_is_not_trusted() {
    let mut lab = Lab::new();
    let certificates = certificates(&lab, "certificates");
    let strangers = common::certificates(&lab, "strangers");
    serve_with(&mut lab, &strangers);
    let reason = not_believed(&lab, &config_with(&certificates));
    let message = reason["message"].as_str().unwrap();
    assert!(message.contains("no TLS with the NBD server"), "{reason:#}");
    assert!(message.contains("its certificate is not believed: unable to get local issuer"), "{reason:#}");
}

#[test]
fn a_server_whose_certificate_has_another_name_is_not_trusted() {
    let mut lab = Lab::new();
    let certificates = certificates(&lab, "certificates");
    serve_with(&mut lab, &certificates);
    let other = format!("{}tls_name = \"nbd.example.org\"\n", config_with(&certificates));
    let reason = not_believed(&lab, &other);
    assert!(reason["message"].as_str().unwrap().contains("not believed: hostname mismatch"), "{reason:#}");
}

#[test]
fn a_certificate_file_that_is_missing_is_named_at_the_start() {
    let mut lab = Lab::new();
    lab.nbdkit_start().unwrap();
    lab.attachd_config(&format!("{CONFIG}[export]\ntls_ca = \"/nowhere/ca.pem\"\n")).unwrap();
    let said = start_fails(&lab);
    assert!(Path::new("/nowhere").metadata().is_err());
    assert!(said.contains("/nowhere/ca.pem"), "{said}");
}

/// Writes a key file in the format of nbdkit and attachd.
fn keys(lab: &Lab, name: &str, lines: &[(&str, &str)], owner: people::Person) -> PathBuf {
    let file = lab.dir().join(name);
    let text: Vec<String> = lines.iter().map(|(name, key)| format!("{name}:{key}\n")).collect();
    std::fs::write(&file, text.concat()).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
    chown(&file, Some(owner.id), None).unwrap();
    file
}

const RIGHT: &str = "8d2f0c6b1e5a49d3b7c4f1a2e3d4c5b68d2f0c6b1e5a49d3b7c4f1a2e3d4c5b6";
const WRONG: &str = "1d2f0c6b1e5a49d3b7c4f1a2e3d4c5b68d2f0c6b1e5a49d3b7c4f1a2e3d4c5b6";

fn serve_with_keys(lab: &mut Lab) {
    let keys = keys(lab, "server.psk", &[("tunnel", WRONG), ("attachd", RIGHT)], people::NBD);
    lab.nbdkit_start_with(&["--tls=require", &format!("--tls-psk={}", keys.display())]).unwrap();
}

fn config_with_key(keys: &Path) -> String {
    format!("{CONFIG}[export]\ntls_psk_file = {:?}\n", keys.display().to_string())
}

#[test]
fn an_export_under_tls_is_proven_with_a_shared_key_that_never_shows_anywhere() {
    let mut lab = Lab::new();
    serve_with_keys(&mut lab);
    let own = keys(&lab, "attachd.psk", &[("attachd", RIGHT)], people::ATTACHD);
    lab.attachd_config(&config_with_key(&own)).unwrap();
    let talkative = lab::AttachdOptions { env: vec![("ATTACHD_LOG".into(), "trace".into())], ..Default::default() };
    let attachd = lab.attachd_start(bin(), &talkative).unwrap();
    let (volume, disk) = served(&lab, &attachd.api());
    assert!(!lab.nbd_connects(&volume.export()), "the control: in the clear the server gives nothing");
    // Connects as another client that has a key.
    let others = keys(&lab, "others.psk", &[("tunnel", WRONG)], people::ATTACHD);
    let uri = format!("nbds://tunnel@127.0.0.1/{}?tls-psk-file={}", volume.export(), others.display());
    lab.nbdcopy_uri_equals(&uri, disk.file()).unwrap();
    assert!(!attachd.stderr_text().contains(&RIGHT[..16]), "{}", attachd.stderr_text());
}

#[test]
fn a_server_with_another_key_is_not_trusted() {
    let mut lab = Lab::new();
    serve_with_keys(&mut lab);
    let wrong = keys(&lab, "attachd.psk", &[("attachd", WRONG)], people::ATTACHD);
    let reason = not_believed(&lab, &config_with_key(&wrong));
    assert!(reason["message"].as_str().unwrap().contains("does not agree to the key of attachd"), "{reason:#}");
    assert!(!reason.to_string().contains(&WRONG[..16]), "{reason:#}");
}

/// A server without the key must not be accepted because of a certificate, whoever has signed it.
#[test]
fn a_server_that_shows_a_certificate_in_place_of_the_key_is_not_trusted() {
    let mut lab = Lab::new();
    let certificates = certificates(&lab, "certificates");
    let folder = format!("--tls-certificates={}", certificates.folder().display());
    lab.nbdkit_start_with(&["--tls=require", &folder]).unwrap();
    let own = keys(&lab, "attachd.psk", &[("attachd", RIGHT)], people::ATTACHD);
    let reason = not_believed(&lab, &config_with_key(&own));
    assert!(reason["message"].as_str().unwrap().contains("shows a certificate and not the key"), "{reason:#}");
}

#[test]
fn a_file_of_keys_that_cannot_be_used_is_named_at_the_start() {
    let mut lab = Lab::new();
    serve_with_keys(&mut lab);
    let several = keys(&lab, "attachd.psk", &[("tunnel", WRONG), ("attachd", RIGHT)], people::ATTACHD);
    lab.attachd_config(&config_with_key(&several)).unwrap();
    let said = start_fails(&lab);
    assert!(said.contains("attachd.psk: it has several keys: tls_psk_identity says which"), "{said}");
    // With the name given, it starts.
    lab.attachd_config(&format!("{}tls_psk_identity = \"attachd\"\n", config_with_key(&several))).unwrap();
    let attachd = start(&lab);
    served(&lab, &attachd.api());
}
