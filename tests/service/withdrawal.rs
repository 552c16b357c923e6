//! Withdrawing a volume while clients are connected, with every part in its sandbox.

use std::time::Instant;

use lab::Volume;
use serde_json::{Value, json};

use crate::host::{Host, SOON};

fn path(volume: &Volume) -> String {
    format!("/api/v1/intents/{}", volume.id)
}

fn is_gone(host: &Host, volume: &Volume) -> bool {
    host.api.get(&path(volume)).unwrap().status == 404
}

/// Checks that the server's end of this client's connection has the keep-alive of the shipped socket unit.
pub(crate) fn has_keep_alive(host: &Host, client: &str) {
    let connection = |end: &str| host.run("ss", &["-Htno", "state", "established", end, client]);
    let begun = Instant::now();
    // While data is in flight, another timer runs first.
    while !connection("dst").contains("timer:(keepalive,") {
        assert!(begun.elapsed() < SOON, "{:?}", connection("dst"));
    }
    let itself = connection("src");
    assert!(!itself.is_empty() && !itself.contains("timer:(keepalive,"), "the control, the client's end: {itself:?}");
}

/// Withdraws by force while these clients are connected, and checks everything that is reported. Returns the hint.
fn forced(host: &Host, volume: &Volume, clients: &Value) -> String {
    let answer = host.api.delete(&format!("{}?force=true", path(volume))).unwrap().expect(200).unwrap();
    println!("{answer:#}");
    assert_eq!(&answer["clients_still_connected"], clients);
    let message = answer["message"].as_str().unwrap();
    assert!(message.contains("stay open") && message.contains("ss -K"), "{message}");
    let shown = host.shown(volume);
    println!("{}: {}", shown["state"], shown["reason"]);
    assert_eq!((&shown["state"], &shown["reason"]["code"]), (&"detaching".into(), &"CLIENTS_CONNECTED".into()));
    assert!(!host.lab().nbd_connects(&volume.export()), "new clients are refused");
    shown["reason"]["hint"].as_str().unwrap().to_owned()
}

/// Invariant 6.
#[test]
fn a_connected_client_is_named_and_a_forced_withdrawal_waits_until_it_has_gone() {
    let host = Host::installed();
    let (volume, _disk) = host.served();
    let mut client = host.lab().nbd_client(&volume.export()).unwrap();

    let refused = host.api.delete(&path(&volume)).unwrap().expect(409).unwrap();
    println!("{refused:#}");
    assert_eq!(refused["code"], "CLIENTS_CONNECTED", "{refused:#}");
    let clients = &refused["details"]["clients"];
    assert_eq!(clients.as_array().unwrap().len(), 1, "{refused:#}");
    assert!(refused["error"].as_str().unwrap().contains(clients[0].as_str().unwrap()), "{refused:#}");
    assert_eq!(client.read(0, 512).unwrap().len(), 512, "a refusal changes nothing");
    assert!(host.lab().nbd_connects(&volume.export()));

    // If the client's host vanishes, the kernel's keep-alive notices it.
    has_keep_alive(&host, &client.address().unwrap());

    let mut events = host.api.events().unwrap();
    forced(&host, &volume, clients);
    assert_eq!(client.read(0, 512).unwrap().len(), 512, "it keeps what it has opened");
    // The withdrawal and the client survive a restart.
    host.run("systemctl", &["restart", "attachd"]);
    assert_eq!(host.shown(&volume)["state"], "detaching");
    assert_eq!(client.read(0, 512).unwrap().len(), 512);
    drop(events);
    events = host.api.events().unwrap();
    drop(client);
    events.wait_for(|event| event["event"] == "withdrawn", SOON).unwrap();
    assert!(is_gone(&host, &volume));
}

/// Both alternatives that the hint names.
#[test]
fn following_the_hint_of_a_forced_withdrawal_cuts_the_clients() {
    let host = Host::installed();
    for way in ["ss -K dst <address>", "restart the NBD server"] {
        let (volume, _disk) = host.served();
        let (neighbour, _other) = host.served();
        let mut client = host.lab().nbd_client(&volume.export()).unwrap();
        let mut beside = host.lab().nbd_client(&neighbour.export()).unwrap();
        let refused = host.api.delete(&path(&volume)).unwrap().expect(409).unwrap();
        let clients = &refused["details"]["clients"];
        let address = client.address().unwrap();
        assert!(clients.as_array().unwrap().contains(&json!(address)), "{refused:#}");
        // nbdkit does not show which of its clients uses which disk.
        assert!(refused["error"].as_str().unwrap().contains("some of these may use other exports"), "{refused:#}");
        let mut events = host.api.events().unwrap();
        let hint = forced(&host, &volume, clients);
        assert!(hint.contains(way), "{hint}");

        if way.starts_with("ss") {
            let command = way.replace("<address>", &address);
            let (program, args) = command.split_once(' ').unwrap();
            host.show(program, &args.split(' ').collect::<Vec<_>>());
            assert_eq!(beside.read(0, 512).unwrap().len(), 512, "nobody else's");
        } else {
            host.show("systemctl", &["restart", "attachd-nbdkit"]);
        }
        assert!(client.read(0, 512).is_err());
        let gone = |event: &Value| event["event"] == "withdrawn" && event["volume_id"] == *volume.id;
        events.wait_for(gone, SOON).unwrap_or_else(|e| panic!("{e:#}\n{}", host.story()));
        assert!(is_gone(&host, &volume));
        host.wait(&neighbour, "ready");
    }
}

#[test]
fn without_the_helper_the_clients_are_unknown_and_force_passes_without_waiting_for_them() {
    let host = Host::installed();
    let (volume, _disk) = host.served();
    let mut client = host.lab().nbd_client(&volume.export()).unwrap();
    let named = host.api.delete(&path(&volume)).unwrap().expect(409).unwrap();
    assert_eq!(named["code"], "CLIENTS_CONNECTED", "the control");
    // A masked unit is not started.
    host.run("systemctl", &["stop", "attachd-helper.socket", "attachd-helper.service"]);
    host.run("systemctl", &["mask", "--runtime", "attachd-helper.socket", "attachd-helper.service"]);

    let unknown = host.api.delete(&path(&volume)).unwrap().expect(409).unwrap();
    println!("{unknown:#}");
    assert_eq!(unknown["code"], "CLIENTS_UNKNOWN", "{unknown:#}");
    assert_eq!(unknown["details"]["clients"], named["details"]["clients"], "the candidates");
    let health = host.api.get("/api/v1/health").unwrap().json;
    assert_eq!((&health["status"], &health["helper"]["state"]), (&"degraded".into(), &"silent".into()), "{health:#}");
    assert!(host.lab().nbd_connects(&volume.export()), "nothing was changed");

    let forced = host.api.delete(&format!("{}?force=true", path(&volume))).unwrap().expect(200).unwrap();
    assert_eq!(forced["clients_still_connected"], named["details"]["clients"]);
    assert!(is_gone(&host, &volume), "nobody could say when they are gone");
    assert!(!host.lab().nbd_connects(&volume.export()));
    assert_eq!(client.read(0, 512).unwrap().len(), 512);
}
