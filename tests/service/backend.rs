//! `attachctl backend`: the whole change of the NBD server with one command, and the change back.

use std::fs;

use lab::nbd_server::Release;
use serde_json::Value;

use crate::host::{CONFIG, Host, append_to_config};
use crate::nbd_server::install;

/// Lines that an administrator has written.
const LINES: &str = "# mine\n[export] # ours\nlisten = \"127.0.0.1:10809\" # the tunnel's end\n";

fn change(host: &Host, server: &str, more: &[&str]) -> Result<Value, Value> {
    let arguments = [&["--json", "backend", server, "--config", CONFIG], more].concat();
    let output = host.inside.output("attachctl", &arguments).unwrap();
    let read = |text: &[u8]| serde_json::from_slice(text).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    if output.status.success() { Ok(read(&output.stdout)) } else { Err(read(&output.stderr)) }
}

fn enabled(host: &Host) -> Vec<&'static str> {
    let units =
        ["attachd-nbdkit.socket", "attachd-nbdkit.service", "attachd-nbd-server.service", "attachd-nbd-server.socket"];
    let is = |unit: &&str| {
        let is = |what: &str| host.inside.output("systemctl", &[what, "-q", unit]).unwrap().status.success();
        assert_eq!(is("is-enabled"), is("is-active"), "{unit}");
        is("is-active")
    };
    units.into_iter().filter(is).collect()
}

#[test]
fn one_command_changes_the_nbd_server_and_another_changes_it_back() {
    let host = Host::installed();
    install(&host, Release::Trixie);
    append_to_config(LINES);
    host.run("systemctl", &["restart", "attachd"]);
    let before = fs::read_to_string(CONFIG).unwrap();
    let (volume, disk) = host.served();
    let served = || {
        host.wait(&volume, "ready");
        host.lab().nbdcopy_equals(&volume.export(), disk.file()).unwrap_or_else(|e| panic!("{e:#}\n{}", host.story()));
    };

    // dpkg does not know the package here, so attachd chooses the mode that is safe with every version.
    let told = change(&host, "nbd-server", &[]).unwrap_or_else(|e| panic!("{e:#}\n{}", host.story()));
    println!("{told:#}");
    assert_eq!((&told["changed"], &told["unit"]), (&true.into(), &"attachd-nbd-server.socket".into()));
    assert_eq!(enabled(&host), ["attachd-nbd-server.socket"]);
    let health = host.api.get("/api/v1/health").unwrap().json;
    assert_eq!((&health["backend"]["name"], &health["backend"]["mode"]), (&"nbd-server".into(), &"socket".into()));
    let text = fs::read_to_string(CONFIG).unwrap();
    assert_eq!(text.replace("backend = \"nbd-server\"\n", ""), before, "nothing else has changed");
    served();
    assert_eq!(change(&host, "nbd-server", &[]).unwrap()["changed"], false, "asking twice");

    let client = host.lab().nbd_client(&volume.export()).unwrap();
    let refused = change(&host, "nbdkit", &[]).unwrap_err();
    assert_eq!(refused["code"], "CLIENTS_CONNECTED");
    assert_eq!(enabled(&host), ["attachd-nbd-server.socket"], "nothing was changed");
    drop(client);

    append_to_config("mode = \"socket\"\n");
    let told = change(&host, "nbdkit", &[]).unwrap_or_else(|e| panic!("{e:#}\n{}", host.story()));
    assert_eq!(told["unit"], "attachd-nbdkit.service");
    assert_eq!(enabled(&host), ["attachd-nbdkit.socket", "attachd-nbdkit.service"]);
    served();
    // The keys that only nbd-server knows are restored with it; and the output is for people.
    let words = host.run("attachctl", &["backend", "nbd-server", "--config", CONFIG]);
    println!("{words}");
    assert!(words.contains("systemctl restart attachd.service") && words.contains("1 ready"), "{words}");
    assert!(fs::read_to_string(CONFIG).unwrap().contains("\nmode = \"socket\"\n"));
    served();
}

#[test]
fn a_change_that_fails_half_way_is_undone() {
    let host = Host::installed();
    install(&host, Release::Trixie);
    append_to_config(LINES);
    let before = fs::read_to_string(CONFIG).unwrap();
    let (volume, disk) = host.served();
    // The new server's unit cannot be started. That is found after the old one is stopped.
    host.run("systemctl", &["mask", "attachd-nbd-server.socket"]);
    let told = change(&host, "nbd-server", &[]).unwrap_err();
    println!("{told:#}");
    assert_eq!((&told["code"], &told["details"]["undone"]), (&"BACKEND_NOT_CHANGED".into(), &true.into()));
    assert!(told["error"].as_str().unwrap().contains("attachd-nbd-server.socket"), "{told}");
    assert!(
        told["details"]["steps"].to_string().contains("disable --now attachd-nbdkit.socket"),
        "the control: {told}"
    );
    assert_eq!(fs::read_to_string(CONFIG).unwrap(), before);
    host.run("systemctl", &["unmask", "attachd-nbd-server.socket"]);
    assert_eq!(enabled(&host), ["attachd-nbdkit.socket", "attachd-nbdkit.service"]);
    host.wait(&volume, "ready");
    host.lab().nbdcopy_equals(&volume.export(), disk.file()).unwrap();

    let told = host.inside.output(
        "setpriv",
        &["--reuid=nobody", "--regid=attachd", "--clear-groups", "--", "attachctl", "--json", "backend", "nbdkit"],
    );
    assert!(String::from_utf8(told.unwrap().stderr).unwrap().contains("NOT_ROOT"));
    fs::remove_file("/usr/bin/nbd-server").unwrap();
    assert_eq!(change(&host, "nbd-server", &[]).unwrap_err()["code"], "NOT_INSTALLED");
}
