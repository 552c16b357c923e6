//! A reload of the configuration: what takes effect at once, what is only named, and mistakes that change nothing.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use common::*;
use lab::{Api, Attachd, Lab};
use serde_json::{Value, json};

/// Returns the number of resyncs, one of which ends each reload.
fn resyncs(api: &Api) -> u64 {
    health(api)["resync"]["count"].as_u64().unwrap()
}

/// Repeats a request until its answer is the expected one.
fn asked_until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "in time: {what}");
    }
}

/// Reloads attachd with this configuration. A reload ends with a resync, and nothing else causes one here.
fn reload(lab: &Lab, attachd: &Attachd, config: &str) {
    lab.attachd_config(config).unwrap();
    let api = attachd.api();
    let before = resyncs(&api);
    attachd.sighup().unwrap();
    asked_until("the reload is done", || (resyncs(&api) != before).then_some(()));
}

fn codes(health: &Value, kind: &str) -> Vec<String> {
    health[kind].as_array().unwrap().iter().map(|one| one["code"].as_str().unwrap().to_owned()).collect()
}

fn message(health: &Value, kind: &str, code: &str) -> String {
    let found = health[kind].as_array().unwrap().iter().find(|one| one["code"] == code);
    found.unwrap_or_else(|| panic!("{code} in {health:#}"))["message"].as_str().unwrap().to_owned()
}

fn said(attachd: &Attachd) -> String {
    attachd.stderr_text()
}

#[test]
fn limits_and_the_hosts_own_vm_take_effect_at_a_reload() {
    let lab = with_nbdkit();
    lab.attachd_config(&format!("{CONFIG}[limits]\nintents = 1\n")).unwrap();
    let attachd = start(&lab);
    let api = attachd.api();
    let first = intend(&api, &lab.volume());
    assert_eq!(first["vm_id"], "");
    let second = lab.volume();
    let ask = || api.post("/api/v1/intents", &json!({ "volume_id": second.id })).unwrap();
    assert_eq!(ask().expect(429).unwrap()["code"], "TOO_MANY_INTENTS", "the control: the limit before");

    reload(&lab, &attachd, &format!("{CONFIG}[limits]\nintents = 2\n[host]\nvm_id = \"own\"\n[history]\ndays = 7\n"));
    assert_eq!(ask().expect(201).unwrap()["vm_id"], "own");
    let told = said(&attachd);
    assert!(told.contains("changed: [host] vm_id, [history] days, [limits] intents"), "{told}");
    assert_eq!(health(&api)["remarks"], json!([]), "nothing waits for a restart");

    reload(&lab, &attachd, &format!("{CONFIG}[limits]\nintents = 2\n[host]\nvm_id = \"own\"\n[history]\ndays = 7\n"));
    assert!(said(&attachd).contains("nothing in it has changed"), "{}", said(&attachd));
}

#[test]
fn settings_that_need_a_restart_are_named_and_stay_unchanged_until_then() {
    let (lab, mut attachd, api) = up();
    let (volume, _disk) = served(&lab, &api);
    let elsewhere = "listen = \"127.0.0.1:10999\"";
    let new = format!("{CONFIG}[export]\n{elsewhere}\n[limits]\nintents = 7\n");
    reload(&lab, &attachd, &new);
    let told = said(&attachd);
    assert!(told.contains("changed: [limits] intents"), "{told}");
    assert!(told.contains("takes a restart of attachd (exports stay served): [export] listen"), "{told}");
    let now = health(&api);
    assert_eq!((&now["status"], &now["backend"]["listen"]), (&json!("healthy"), &json!("127.0.0.1:10809")));
    assert!(message(&now, "remarks", "RESTART_NEEDED").contains("[export] listen"));
    assert_eq!(show(&api, &volume)["export"]["state"], "served");
    // The same again: the settings in use still differ from the file.
    reload(&lab, &attachd, &new);
    assert_eq!(codes(&health(&api), "remarks"), ["RESTART_NEEDED"]);

    attachd.terminate().unwrap();
    let attachd = start(&lab);
    let now = health(&attachd.api());
    assert_eq!(now["backend"]["listen"], "127.0.0.1:10999", "the control: a restart takes it over");
    assert_eq!(now["remarks"], json!([]));
    reload(&lab, &attachd, CONFIG);
    assert!(message(&health(&attachd.api()), "remarks", "RESTART_NEEDED").contains("[export] listen"));
    reload(&lab, &attachd, &new);
    assert_eq!(health(&attachd.api())["remarks"], json!([]), "taken back before the restart");
}

/// Returns the output of `check-config` for a configuration.
fn check_config(path: &Path) -> String {
    let output = Command::new(bin()).args(["--config", path.to_str().unwrap(), "check-config"]).output().unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap().trim_end().to_owned()
}

#[test]
fn a_reload_with_a_mistake_changes_nothing_and_says_what_check_config_says() {
    let (lab, attachd, api) = up();
    let config = Path::new("/etc/attachd/attachd.toml");
    let ca = lab.dir().join("ca.pem");
    std::fs::write(&ca, "no certificate").unwrap();
    for mistake in [
        "[limits]\nintents = 1\nintents_per_usr = 1\n[host]\nvm_id = \"x\"\n".to_owned(),
        "[limits]\nintents = 1\n[store]\nclaims = \"/etc\"\n".to_owned(),
        format!("[limits]\nintents = 1\n[export]\ntls_ca = {:?}\n", ca.display().to_string()),
        "[limits]\nintents = 1\n[export]\ntls_psk_file = \"/nowhere/keys\"\n".to_owned(),
    ] {
        reload(&lab, &attachd, &format!("{CONFIG}{mistake}"));
        let now = health(&api);
        let (told, checked) = (message(&now, "problems", "CONFIG_INVALID"), check_config(config));
        assert_eq!(now["status"], "degraded");
        assert!(checked.starts_with("/etc/attachd/attachd.toml:"), "with its place: {checked}");
        assert!(told.ends_with(&checked), "{told}\n{checked}");
        assert!(said(&attachd).contains(&format!("the one in use stays:\n{checked}")), "{}", said(&attachd));
        // With the limit of the bad file, the second intent would be refused.
        for _ in 0..2 {
            let volume = lab.volume();
            assert_eq!(intend(&api, &volume)["vm_id"], "");
        }
    }
    reload(&lab, &attachd, &format!("{CONFIG}[limits]\nintents = 1\n"));
    assert_eq!(health(&api)["status"], "healthy", "the mistake is gone");
    let refused = api.post("/api/v1/intents", &json!({ "volume_id": lab.volume().id })).unwrap();
    refused.expect(429).expect("the control: the file without its mistake counts");
}

const CLIENTS: [&str; 3] = ["ca-cert.pem", "client-cert.pem", "client-key.pem"];

/// Replaces a file in one step.
fn replace(old: &str, new: &str) {
    std::fs::rename(new, old).unwrap();
}

#[test]
fn replaced_certificates_are_read_again_without_a_reload() {
    let mut lab = Lab::new();
    let (mine, renewed) = (certificates(&lab, "mine"), certificates(&lab, "renewed"));
    serve_with(&mut lab, &renewed);
    lab.attachd_config(&config_with(&mine)).unwrap();
    let attachd = start(&lab);
    let api = attachd.api();
    let (volume, _disk) = attached(&lab, &api);
    let refused = wait_reason(&api, &volume, "BACKEND_DOWN");
    assert!(refused["reason"]["message"].as_str().unwrap().contains("not believed"), "the control: {refused:#}");

    // Only one of the three files is replaced, so they do not fit together, and the old ones stay in use.
    replace(&mine.file(CLIENTS[2]), &renewed.file(CLIENTS[2]));
    let now = asked_until("health tells of the files", || {
        Some(health(&api)).filter(|now| codes(now, "problems").contains(&"TLS_FILES".to_owned()))
    });
    assert!(message(&now, "problems", "TLS_FILES").contains("client-key.pem: "), "{now:#}");
    replace(&mine.file(CLIENTS[1]), &renewed.file(CLIENTS[1]));
    replace(&mine.file(CLIENTS[0]), &renewed.file(CLIENTS[0]));
    wait(&api, &volume, "ready");
    assert!(!codes(&health(&api), "problems").contains(&"TLS_FILES".to_owned()));
}

/// The behaviour of nbdkit that docs/security.md describes.
#[test]
fn nbdkit_reads_its_certificates_only_when_it_starts() {
    let mut lab = Lab::new();
    let (old, renewed) = (certificates(&lab, "old"), certificates(&lab, "renewed"));
    serve_with(&mut lab, &old);
    for name in ["ca-cert.pem", "server-cert.pem", "server-key.pem"] {
        replace(&old.file(name), &renewed.file(name));
    }
    std::fs::copy(old.file(CLIENTS[0]), renewed.file(CLIENTS[0])).unwrap();
    lab.attachd_config(&config_with(&renewed)).unwrap();
    let attachd = start(&lab);
    let (volume, _disk) = attached(&lab, &attachd.api());
    wait_reason(&attachd.api(), &volume, "BACKEND_DOWN");
    lab.nbdkit_kill().unwrap();
    serve_with(&mut lab, &old);
    wait(&attachd.api(), &volume, "ready");
}

#[test]
fn tls_itself_can_be_turned_on_by_a_reload() {
    let mut lab = Lab::new();
    let certificates = certificates(&lab, "certificates");
    serve_with(&mut lab, &certificates);
    lab.attachd_config(CONFIG).unwrap();
    let attachd = start(&lab);
    let api = attachd.api();
    let (volume, _disk) = attached(&lab, &api);
    wait_reason(&api, &volume, "EXPORT_REFUSED");
    reload(&lab, &attachd, &config_with(&certificates));
    wait(&api, &volume, "ready");
    assert!(said(&attachd).contains("changed: [export] tls_ca"));
}

/// Nobody calls CloudStack here: what health says of it is known without a call.
#[test]
fn another_cloudstack_takes_effect_at_a_reload_and_the_first_one_at_a_restart() {
    let (lab, mut attachd, api) = up();
    let now = health(&api);
    assert_eq!((&now["cloud"], &now["cloudstack_health"]), (&json!(null), &json!("not configured")));
    let plain = format!("{CONFIG}[cloudstack]\nurl = \"http://192.0.2.1\"\ninsecure = true\n");
    reload(&lab, &attachd, &plain);
    assert!(message(&health(&api), "remarks", "RESTART_NEEDED").contains("[cloudstack] url"));
    assert_eq!(health(&api)["cloud"], json!(null), "not before a restart");

    attachd.terminate().unwrap();
    let attachd = start(&lab);
    let api = attachd.api();
    let now = health(&api);
    let cloud = &now["cloud"];
    assert_eq!((&cloud["url"], &cloud["state"]), (&json!("http://192.0.2.1/client/api"), &json!("unknown")));
    assert_eq!(
        (&cloud["last_answer"], &cloud["own_vm"]["id"], &cloud["own_vm"]["why"]),
        (&json!(null), &json!(null), &json!(null))
    );
    assert_eq!(codes(&now, "problems"), ["CLOUD_INSECURE"]);
    assert!(message(&now, "problems", "CLOUD_INSECURE").contains("192.0.2.1"));

    let secret = lab.dir().join("secret");
    std::fs::write(&secret, "hunter2").unwrap();
    let tls = format!("{CONFIG}[cloudstack]\nurl = \"https://192.0.2.1\"\n");
    reload(&lab, &attachd, &format!("{tls}secret_file = {:?}\n", secret.display().to_string()));
    let told = message(&health(&api), "problems", "CONFIG_INVALID");
    assert!(
        told.contains("[cloudstack] secret_file") && told.contains("chmod 0640") && !told.contains("hunter2"),
        "{told}"
    );
    assert_eq!(health(&api)["cloud"]["url"], "http://192.0.2.1/client/api", "the one before is in use");
    reload(&lab, &attachd, &tls);
    let now = health(&api);
    assert_eq!((&now["cloud"]["url"], &now["problems"]), (&json!("https://192.0.2.1/client/api"), &json!([])));
    assert!(said(&attachd).contains("changed: [cloudstack] url, [cloudstack] insecure"), "{}", said(&attachd));
}
