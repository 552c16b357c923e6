//! TLS towards the NBD server: proven only over it, refused without.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::*;
use lab::{Lab, people};

/// An authority, and certificates of it for the server's address and for attachd.
struct Certificates(PathBuf);

impl Certificates {
    fn make(lab: &Lab, name: &str) -> Self {
        let folder = lab.dir().join(name);
        std::fs::create_dir(&folder).unwrap();
        let all = Self(folder);
        all.openssl(
            "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca-key.pem -out ca-cert.pem",
        );
        all.signed("server", "subjectAltName=IP:127.0.0.1");
        all.signed("client", "extendedKeyUsage=clientAuth");
        for (file, owner) in [("server-key.pem", people::NBD.id), ("client-key.pem", people::ATTACHD.id)] {
            std::os::unix::fs::chown(all.0.join(file), Some(owner), None).unwrap();
        }
        all
    }

    fn signed(&self, who: &str, extension: &str) {
        std::fs::write(self.0.join("extension"), format!("{extension}\n")).unwrap();
        self.openssl(&format!("req -newkey rsa:2048 -nodes -subj /CN={who} -keyout {who}-key.pem -out {who}.csr"));
        let sign = "x509 -req -days 2 -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -extfile extension";
        self.openssl(&format!("{sign} -in {who}.csr -out {who}-cert.pem"));
    }

    fn openssl(&self, arguments: &str) {
        let output = Command::new("openssl").args(arguments.split(' ')).current_dir(&self.0).output().unwrap();
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn serve(&self, lab: &mut Lab) {
        let folder = format!("--tls-certificates={}", self.0.display());
        lab.nbdkit_start_with(&["--tls=require", "--tls-verify-peer", &folder]).unwrap();
    }

    fn config(&self) -> String {
        let file = |name: &str| self.0.join(name).display().to_string();
        let (ca, certificate, key) = (file("ca-cert.pem"), file("client-cert.pem"), file("client-key.pem"));
        format!("{CONFIG}[export]\ntls_ca = {ca:?}\ntls_certificate = {certificate:?}\ntls_key = {key:?}\n")
    }
}

#[test]
fn an_export_under_tls_is_proven_with_certificates_and_refused_in_the_clear() {
    let mut lab = Lab::new();
    let certificates = Certificates::make(&lab, "certificates");
    certificates.serve(&mut lab);
    lab.attachd_config(&certificates.config()).unwrap();
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
fn a_server_with_a_strangers_certificate_is_not_believed() {
    let mut lab = Lab::new();
    let certificates = Certificates::make(&lab, "certificates");
    Certificates::make(&lab, "strangers").serve(&mut lab);
    lab.attachd_config(&certificates.config()).unwrap();
    let attachd = start(&lab);
    let api = attachd.api();
    let volume = lab.volume();
    intend(&api, &volume);
    let mut events = api.events().unwrap();
    let mut disk = lab.disk(&volume.serial, MIB).unwrap();
    disk.attach().unwrap();
    let refused = events.wait_for(|event| event["reason"]["code"] == "BACKEND_DOWN", SOON).unwrap();
    assert!(refused["reason"]["message"].as_str().unwrap().contains("no TLS with the NBD server"), "{refused:#}");
}

#[test]
fn a_certificate_file_that_is_missing_is_named_at_the_start() {
    let mut lab = Lab::new();
    lab.nbdkit_start().unwrap();
    lab.attachd_config(&format!("{CONFIG}[export]\ntls_ca = \"/nowhere/ca.pem\"\n")).unwrap();
    let options = lab::AttachdOptions { wait_ready: false, ..Default::default() };
    let mut attachd = lab.attachd_start(bin(), &options).unwrap();
    assert!(!attachd.wait_exit(SOON).unwrap().success());
    assert!(Path::new("/nowhere").metadata().is_err());
    assert!(attachd.stderr_text().contains("/nowhere/ca.pem"), "{}", attachd.stderr_text());
}
