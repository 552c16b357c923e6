//! How the daemon's process ends: in each case without exit handlers, which free what its threads still use.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::cloud::lab_in_cloud;
use common::*;
use lab::{AttachdOptions, Lab};
use serde_json::json;
use stand_in::{Fault, Gate};

/// Where the exit handler leaves its mark; attachd can write there.
const MARK: &str = "/run/attachd/exit-handlers-ran";

/// A library whose exit handler leaves a mark, as OpenSSL's frees its memory.
fn with_exit_handler(lab: &Lab) -> AttachdOptions {
    let (source, library) = (lab.dir().join("handler.c"), lab.dir().join("handler.so"));
    let code = "#include <fcntl.h>\n#include <stdlib.h>\n\
        static void ran(void) { open(\"MARK\", O_CREAT | O_WRONLY, 0600); }\n\
        __attribute__((constructor)) static void begin(void) { atexit(ran); }\n";
    std::fs::write(&source, code.replace("MARK", MARK)).unwrap();
    let made = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status().unwrap();
    assert!(made.success(), "rustc links with cc, too");
    let library = readable_by_all(&library);
    AttachdOptions { env: vec![("LD_PRELOAD".into(), library.display().to_string())], ..AttachdOptions::default() }
}

/// The lab's folder is root's.
fn readable_by_all(library: &Path) -> PathBuf {
    let copy = PathBuf::from("/run/handler.so");
    std::fs::copy(library, &copy).unwrap();
    copy
}

/// The mark is left, and removed, by a program that ends in the usual way.
fn control(options: &AttachdOptions) {
    let mut command = Command::new(bin());
    command.args(["check-config", "--config", "/etc/attachd/attachd.toml"]).envs(options.env.iter().cloned());
    assert!(command.output().unwrap().status.code().is_some());
    std::fs::remove_file(MARK).expect("the control: the handler of a program that returns from main runs");
}

#[test]
fn a_daemon_that_is_stopped_while_cloudstack_has_not_answered_ends_with_success_and_runs_no_exit_handler() {
    let (lab, cloud) = lab_in_cloud();
    lab.not_restarted("how it ends is the subject");
    let options = with_exit_handler(&lab);
    control(&options);
    let answers = Gate::new();
    cloud.each("createVolume", Fault::Held(answers.clone()));
    let mut attachd = lab.attachd_start(bin(), &options).unwrap();
    let create = json!({
        "type": "create", "name": "n", "size_bytes": 1, "disk_offering_id": cloud.offering(), "zone_id": cloud.zone(),
    });
    attachd.api().post("/api/v1/operations", &create).unwrap().expect(201).unwrap();
    assert!(answers.reached(SOON), "{}", cloud.told());
    let status = attachd.terminate().unwrap();
    assert_eq!((status.code(), status.signal()), (Some(0), None), "{}", attachd.stderr_text());
    assert!(!Path::new(MARK).exists(), "an exit handler has run beside the call");
    answers.open();
}

#[test]
fn a_daemon_that_cannot_go_on_ends_with_its_status_and_runs_no_exit_handler() {
    let lab = with_nbdkit();
    lab.not_restarted("how it ends is the subject");
    let options = AttachdOptions { wait_ready: false, ..with_exit_handler(&lab) };
    control(&options);
    for (config, expected, says) in [
        (format!("{CONFIG}no_such_key = 1\n"), 78, "no_such_key"),
        (format!("{CONFIG}nbd_group = \"nobodys-group\"\n"), 1, "nbd_group"),
    ] {
        lab.attachd_config(&config).unwrap();
        let mut attachd = lab.attachd_start(bin(), &options).unwrap();
        let status = attachd.wait_exit(SOON).unwrap();
        assert_eq!((status.code(), status.signal()), (Some(expected), None), "{}", attachd.stderr_text());
        assert!(attachd.stderr_text().contains(says), "{}", attachd.stderr_text());
        assert!(!Path::new(MARK).exists(), "{says}: an exit handler has run");
    }
}
