//! NBD on another address, by following `docs/security.md` word for word.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use lab::{Certificates, Disk, Volume};

use crate::host::{Host, append_to_config};

/// The example address of the documentation. The box has its own network.
const ADDRESS: &str = "10.1.1.5";
const KEYS: &str = "/etc/attachd/tls";

/// Returns the code blocks of the section, in order.
fn documented() -> Vec<String> {
    let text = include_str!("../../docs/security.md");
    let (_, section) = text.split_once("### NBD on another address").expect("the section");
    let (section, _) = section.split_once("\n## ").expect("its end");
    let blocks = section.split("```").skip(1).step_by(2);
    blocks.map(|block| block.split_once('\n').unwrap().1.to_owned()).collect()
}

/// Returns the parts of a block: file name and content.
fn parts(block: &str) -> Vec<(&str, String)> {
    let mut parts: Vec<(&str, String)> = Vec::new();
    for line in block.lines() {
        match line.strip_prefix("# ").filter(|name| name.starts_with("attachd") && !name.contains(' ')) {
            Some(name) => parts.push((name, String::new())),
            None => parts.last_mut().expect("a part's name comes first").1.extend([line, "\n"]),
        }
    }
    parts
}

/// Makes a host on which an administrator has followed these blocks. The network comes last, as at boot.
fn listening_there(blocks: &[&str], commands: &str, prepare: impl FnOnce()) -> Host {
    let host = Host::installed();
    fs::create_dir(KEYS).unwrap();
    fs::set_permissions(KEYS, fs::Permissions::from_mode(0o700)).unwrap();
    prepare();
    for (name, text) in blocks.iter().flat_map(|block| parts(block)) {
        if name == "attachd.toml" {
            append_to_config(&text);
        } else {
            let folder = format!("/etc/systemd/system/{name}.d");
            fs::create_dir_all(&folder).unwrap();
            fs::write(format!("{folder}/override.conf"), text).unwrap();
        }
    }
    host.run("sh", &["-ec", commands]);
    host.run("ip", &["address", "add", &format!("{ADDRESS}/24"), "dev", "lo"]);
    let listeners = host.run("ss", &["-Hltn"]);
    let addresses: Vec<_> = listeners.lines().filter_map(|line| line.split_whitespace().nth(3)).collect();
    assert_eq!(addresses, [format!("{ADDRESS}:10809")]);
    host
}

fn sealed(name: &str, text: &str) {
    let path = format!("{KEYS}/{name}");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// Returns whether an independent client is let in.
fn lets_in(host: &Host, uri: &str) -> bool {
    let said = host.inside.output("nbdinfo", &["--size", uri]).unwrap();
    println!("{uri}: {} {}", said.status, String::from_utf8_lossy(&said.stderr).trim());
    said.status.success()
}

fn uri(scheme: &str, volume: &Volume, query: &str) -> String {
    format!("{scheme}{ADDRESS}:10809/{}{query}", volume.export())
}

fn served_with(host: &Host, right: &dyn Fn(&Volume) -> String) -> (Volume, Disk) {
    let (volume, disk) = host.served();
    host.lab().nbdcopy_uri_equals(&right(&volume), disk.file()).unwrap();
    assert!(!lets_in(host, &uri("nbd://", &volume, "")), "in the clear");
    let health = host.api.get("/api/v1/health").unwrap().json;
    assert_eq!(health["backend"]["insecure"], false, "{health:#}");
    (volume, disk)
}

#[test]
fn with_the_documented_drop_ins_exports_are_served_on_another_address_to_clients_with_a_certificate() {
    let [certificates, _, commands] = documented().try_into().expect("three blocks");
    let host = listening_there(&[&certificates], &commands, || {
        Certificates::make(KEYS.as_ref(), ADDRESS).unwrap();
    });
    let with = |folder: &str, volume: &Volume| uri("nbds://", volume, &format!("?tls-certificates={folder}"));
    let (volume, _disk) = served_with(&host, &|volume| with(KEYS, volume));

    // This client trusts the server and has no certificate of its own.
    let bare = "/run/lab/without";
    fs::create_dir(bare).unwrap();
    fs::copy(format!("{KEYS}/ca-cert.pem"), format!("{bare}/ca-cert.pem")).unwrap();
    assert!(!lets_in(&host, &with(bare, &volume)), "without a certificate");
    let strangers = "/run/lab/strangers";
    Certificates::make(strangers.as_ref(), ADDRESS).unwrap();
    fs::copy(format!("{KEYS}/ca-cert.pem"), format!("{strangers}/ca-cert.pem")).unwrap();
    assert!(!lets_in(&host, &with(strangers, &volume)), "with one of another authority");
    assert!(lets_in(&host, &with(KEYS, &volume)), "the control");
}

#[test]
fn with_the_documented_drop_ins_exports_are_served_on_another_address_to_clients_with_a_key() {
    let [certificates, keys, commands] = documented().try_into().expect("three blocks");
    let socket = parts(&certificates).into_iter().find(|(name, _)| name.ends_with(".socket")).unwrap();
    let socket = format!("# {}\n{}", socket.0, socket.1);
    let [own, others, wrong] = ["a", "b", "c"].map(|digit| digit.repeat(64));
    let host = listening_there(&[&socket, &keys], &commands, || {
        sealed("keys.psk", &format!("attachd:{own}\ntunnel:{others}\n"));
        sealed("attachd.psk", &format!("attachd:{own}\n"));
        sealed("tunnel.psk", &format!("tunnel:{others}\n"));
        sealed("wrong.psk", &format!("tunnel:{wrong}\n"));
    });
    let with = |file: &str, volume: &Volume| uri("nbds://tunnel@", volume, &format!("?tls-psk-file={KEYS}/{file}"));
    let (volume, _disk) = served_with(&host, &|volume| with("tunnel.psk", volume));
    assert!(!lets_in(&host, &with("wrong.psk", &volume)), "with another key");
    let story = host.story();
    assert!(!story.contains(&own[..16]) && !story.contains(&others[..16]), "{story}");
}

#[test]
fn another_address_without_tls_is_refused_unless_the_administrator_says_so_which_health_repeats() {
    let host = Host::installed();
    append_to_config("[export]\nlisten = \"10.1.1.5:10809\"\n");
    let refused = host.inside.output("systemctl", &["restart", "attachd"]).unwrap();
    assert!(!refused.status.success());
    assert_eq!(host.inside.property("attachd.service", "ExecMainStatus").unwrap(), "78");
    // systemd does not start it again and again.
    assert_eq!(host.inside.property("attachd.service", "NRestarts").unwrap(), "0");
    let story = host.story();
    assert!(story.contains("attachd.toml:4:10: [export] other hosts reach this address without TLS"), "{story}");

    append_to_config("insecure = true\n");
    host.run("systemctl", &["restart", "attachd"]);
    let health = host.api.get("/api/v1/health").unwrap().json;
    assert_eq!(health["backend"]["insecure"], true, "{health:#}");
    let problems = health["problems"].as_array().unwrap();
    let told = problems.iter().find(|problem| problem["code"] == "INSECURE").expect("said in health");
    assert!(told["message"].as_str().unwrap().contains("10.1.1.5:10809 without TLS"), "{told:#}");
}
