//! The main job: from an announced volume and a disk to an export, and back.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::*;
use serde_json::json;

#[test]
fn an_intent_before_its_disk_is_served_byte_for_byte() {
    let (lab, _attachd, api) = up();
    let (volume, disk) = served(&lab, &api);
    let shown = show(&api, &volume);
    assert_eq!(shown["device_path"], volume.link().to_str().unwrap());
    assert_eq!(shown["device_node"], disk.node().to_str().unwrap());
    assert_eq!(shown["size_bytes"], MIB);
    assert_eq!(shown["export"]["state"], "served");
    assert_eq!(story(&shown), ["intent", "heard", "proven", "recorded", "published", "ready"]);
    lab.nbdcopy_equals(&volume.export(), disk.file()).unwrap();
}

#[test]
fn an_intent_after_its_disk_is_served_once_the_disk_is_marked() {
    let (lab, _attachd, api) = up();
    let (volume, disk) = announced_late(&lab, &api);
    let refused = wait(&api, &volume, "refused");
    assert_eq!(refused["reason"]["code"], "NOT_MARKED");
    assert!(refused["reason"]["hint"].as_str().unwrap().contains("udevadm trigger --action=add"));
    lab.retrigger(&disk).unwrap();
    wait(&api, &volume, "ready");
    lab.nbdcopy_equals(&volume.export(), disk.file()).unwrap();
}

#[test]
fn a_disk_that_comes_after_the_deadline_is_served_and_reported_as_late() {
    let (lab, _attachd, api) = up();
    let volume = lab.volume();
    let body = json!({ "volume_id": volume.id, "deadline_seconds": 0 });
    api.post("/api/v1/intents", &body).unwrap().expect(201).unwrap();
    let expired = wait(&api, &volume, "expired");
    assert_eq!(expired["reason"]["code"], "DEADLINE_PASSED");
    let mut disk = lab.disk(&volume.serial, MIB).unwrap();
    disk.attach().unwrap();
    let ready = wait(&api, &volume, "ready");
    assert!(story(&ready).contains(&"late".to_owned()), "{ready:#}");
}

/// Invariant 5: a mapping never leads to a device that is gone, and `lost` heals.
#[test]
fn a_pulled_disk_revokes_its_export_and_its_return_heals_it() {
    let (lab, _attachd, api) = up();
    let (volume, mut disk) = served(&lab, &api);
    let neighbour = served(&lab, &api);
    let mut events = api.events().unwrap();
    disk.detach().unwrap();
    let lost = wait(&api, &volume, "lost");
    let revoked = events.wait_for(|event| event["event"] == "revoked", SOON).unwrap();
    assert_ne!(revoked["state"], "ready", "it is not served any more");
    assert_eq!(lost["reason"]["code"], "DEVICE_GONE");
    assert_eq!(lost["export"]["state"], "none");
    assert!(!lab.nbd_connects(&volume.export()));
    assert!(lab.nbd_connects(&neighbour.0.export()), "the control: a neighbour stays served");
    disk.attach().unwrap();
    wait(&api, &volume, "ready");
    lab.nbdcopy_equals(&volume.export(), disk.file()).unwrap();
}

#[test]
fn a_withdrawal_takes_export_claim_and_rows_away_and_leaves_the_disk_alone() {
    let (lab, _attachd, api) = up();
    let (volume, disk) = served(&lab, &api);
    withdraw(&api, &volume);
    assert!(!lab.nbd_connects(&volume.export()));
    assert!(!std::path::Path::new("/var/lib/attachd/claims").join(&volume.serial).exists());
    assert_eq!(api.get(&format!("/api/v1/volumes/{}", volume.id)).unwrap().status, 404);
    assert!(disk.is_attached() && disk.node().exists());
    // The same volume can be announced again.
    intend(&api, &volume);
    wait(&api, &volume, "ready");
}

/// Invariant 6: the export is not taken from a connected client, unless forced.
#[test]
fn a_withdrawal_is_refused_while_a_client_is_connected_unless_forced() {
    let (lab, _attachd, api) = up();
    let (volume, disk) = served(&lab, &api);
    let client = lab.nbd_client(&volume.export()).unwrap();
    let path = format!("/api/v1/intents/{}", volume.id);
    let refused = api.delete(&path).unwrap().expect(409).unwrap();
    assert_eq!(refused["code"], "CLIENTS_CONNECTED");
    assert_eq!(refused["details"]["clients"].as_array().unwrap().len(), 1, "{refused:#}");
    assert_eq!(show(&api, &volume)["state"], "ready", "nothing was changed");
    let forced = api.delete(&format!("{path}?force=true")).unwrap().expect(200).unwrap();
    assert_eq!(forced["clients_still_connected"].as_array().unwrap().len(), 1, "{forced:#}");
    assert!(!lab.nbd_connects(&volume.export()));
    drop((client, disk));
}

/// Invariant 7: refuse rather than guess, and name both disks.
#[test]
fn a_second_disk_with_the_serial_of_a_served_volume_revokes_it_until_one_is_left() {
    let (lab, _attachd, api) = up();
    let (volume, disk) = served(&lab, &api);
    let mut twin =
        lab.disk_with(&volume.serial, MIB, lab::DiskOptions { seed: Some(7), ..Default::default() }).unwrap();
    twin.attach().unwrap();
    let refused = wait(&api, &volume, "refused");
    assert_eq!(refused["reason"]["code"], "DUPLICATE_SERIAL");
    for node in [disk.node(), twin.node()] {
        assert!(refused["reason"]["message"].as_str().unwrap().contains(node.to_str().unwrap()), "{refused:#}");
    }
    assert!(!lab.nbd_connects(&volume.export()));
    twin.detach().unwrap();
    wait(&api, &volume, "ready");
    lab.nbdcopy_equals(&volume.export(), disk.file()).unwrap();
}

#[test]
fn a_disk_that_is_too_small_is_refused_with_both_sizes() {
    let (lab, _attachd, api) = up();
    let volume = lab.volume();
    let body = json!({ "volume_id": volume.id, "size_bytes": 2 * MIB });
    api.post("/api/v1/intents", &body).unwrap().expect(201).unwrap();
    let mut disk = lab.disk(&volume.serial, MIB).unwrap();
    disk.attach().unwrap();
    let refused = wait(&api, &volume, "refused");
    assert_eq!(refused["reason"]["code"], "SIZE_TOO_SMALL");
    let message = refused["reason"]["message"].as_str().unwrap();
    assert!(message.contains("1048576") && message.contains("2097152"), "{message}");
    assert!(!lab.nbd_connects(&volume.export()));
}

/// Invariant 7, for a disk that the host itself uses: when the intent comes, and when the disk comes.
#[test]
fn a_disk_the_host_uses_is_refused_by_name_before_and_after() {
    let (lab, _attachd, api) = up();
    let mounted = lab.volume();
    let disk = lab.settled_disk(&mounted.serial, 8 * MIB).unwrap();
    api.wait_disk(&disk, SOON).unwrap();
    run("mkfs.ext4", &["-q", "-F", disk.node().to_str().unwrap()]);
    let place = lab.dir().join("mounted here");
    std::fs::create_dir(&place).unwrap();
    run("mount", &[disk.node().to_str().unwrap(), place.to_str().unwrap()]);
    let refused = api.post("/api/v1/intents", &json!({ "volume_id": mounted.id })).unwrap().expect(409).unwrap();
    assert_eq!(refused["code"], "IN_USE_BY_HOST");
    assert!(refused["error"].as_str().unwrap().contains("mounted here"), "{refused:#}");
    assert_eq!(api.get(&format!("/api/v1/intents/{}", mounted.id)).unwrap().status, 404);
    run("umount", &[place.to_str().unwrap()]);
    intend(&api, &mounted);

    let listed = lab.volume();
    lab.host_disk(&listed.serial).unwrap();
    intend(&api, &listed);
    let mut disk = lab.disk(&listed.serial, MIB).unwrap();
    disk.attach().unwrap();
    let refused = wait(&api, &listed, "refused");
    assert_eq!(refused["reason"]["code"], "IN_USE_BY_HOST");
    assert!(refused["reason"]["message"].as_str().unwrap().contains("listed as a host disk"), "{refused:#}");
}

#[test]
fn a_disk_with_a_partition_table_is_served_whole_and_its_partitions_are_ignored() {
    let (lab, _attachd, api) = up();
    let volume = lab.volume();
    intend(&api, &volume);
    let disk = lab.settled_disk(&volume.serial, 8 * MIB).unwrap();
    wait(&api, &volume, "ready");
    disk.add_partition(1, MIB, 2 * MIB).unwrap();
    resync(&api);
    assert_eq!(show(&api, &volume)["state"], "ready");
    assert_eq!(lab.nbd_list().unwrap(), [volume.export()]);
    lab.nbdcopy_equals(&volume.export(), disk.file()).unwrap();
}

/// Invariant 8: the same request has the same answer, and a different request gets an error that names the field.
#[test]
fn a_repeated_intent_has_the_same_answer_and_a_different_one_names_the_field() {
    let (lab, _attachd, api) = up();
    let volume = lab.volume();
    let first = json!({ "volume_id": volume.id, "vm_id": "vm-1", "size_bytes": 4096 });
    api.post("/api/v1/intents", &first).unwrap().expect(201).unwrap();
    api.post("/api/v1/intents", &first).unwrap().expect(200).unwrap();
    let upper = json!({ "volume_id": volume.id.to_uppercase() });
    api.post("/api/v1/intents", &upper).unwrap().expect(200).unwrap();
    for (field, value) in [("vm_id", json!("vm-2")), ("size_bytes", json!(8192)), ("deadline_seconds", json!(5))] {
        let mut other = json!({ "volume_id": volume.id });
        other[field] = value;
        let refused = api.post("/api/v1/intents", &other).unwrap().expect(409).unwrap();
        assert_eq!((&refused["code"], &refused["details"]["field"]), (&json!("INTENT_DIFFERS"), &json!(field)));
    }
}

/// Invariant 7: two volumes whose ids begin alike cannot be told apart by their disks.
#[test]
fn two_volumes_with_one_prefix_are_refused_and_both_named() {
    let (lab, _attachd, api) = up();
    let volume = lab.volume();
    intend(&api, &volume);
    let tail = if volume.id.ends_with('0') { "1" } else { "0" };
    let twin = format!("{}{tail}", &volume.id[..35]);
    let refused = api.post("/api/v1/intents", &json!({ "volume_id": twin })).unwrap().expect(409).unwrap();
    assert_eq!(refused["code"], "SERIAL_TAKEN");
    let text = refused["error"].as_str().unwrap();
    assert!(text.contains(&volume.id) && text.contains(&twin), "{text}");
}

/// Invariant 10: exports outlive the daemon. A start proves each again and removes those that fail.
#[test]
fn a_restart_finds_its_exports_and_proves_each_again() {
    let (lab, mut attachd, api) = up();
    let (kept, kept_disk) = served(&lab, &api);
    let (pulled, mut pulled_disk) = served(&lab, &api);
    attachd.kill9().unwrap();
    lab.nbdcopy_equals(&kept.export(), kept_disk.file()).unwrap();
    pulled_disk.detach().unwrap();
    // An export without an intent.
    let stray = lab.volume();
    lab.publish(&stray.export(), &kept_disk.link()).unwrap();
    assert!(lab.nbd_connects(&stray.export()), "the control: it is served until somebody takes it away");
    let attachd = start(&lab);
    let api = attachd.api();
    let kept_now = wait(&api, &kept, "ready");
    let once = |event: &str| story(&kept_now).iter().filter(|step| *step == event).count();
    assert_eq!((once("published"), once("revoked"), once("ready")), (1, 0, 2), "proven again, never taken away");
    wait(&api, &pulled, "lost");
    assert!(!lab.nbd_connects(&stray.export()));
    assert_eq!(lab.nbd_list().unwrap(), [kept.export()]);
}

/// Invariant 10: an orderly stop also leaves the exports served.
#[test]
fn an_orderly_stop_ends_in_time_with_a_listener_connected_and_leaves_exports_served() {
    let (lab, mut attachd, api) = up();
    let (volume, _disk) = served(&lab, &api);
    let _events = api.events().unwrap();
    assert!(!attachd.stderr_text().contains("attachd stops"), "nobody has asked for it yet");
    assert!(attachd.terminate().unwrap().success(), "{}", attachd.stderr_text());
    assert!(lab.nbd_connects(&volume.export()));
    let told = attachd.stderr_text();
    assert!(told.contains("attachd has stopped"), "{told}");
    let who = format!("attachd stops: SIGTERM from process {} (", std::process::id());
    assert!(told.contains(&who) && told.contains("of user 0"), "{told}");
    assert!(!attachd.stderr_text().contains("cut"), "{}", attachd.stderr_text());
}

#[test]
fn the_servers_death_is_reported_and_its_return_proves_the_exports_again() {
    let (mut lab, _attachd, api) = up();
    let (volume, disk) = served(&lab, &api);
    lab.nbdkit_kill().unwrap();
    let down = wait(&api, &volume, "exporting");
    assert_eq!(down["reason"]["code"], "BACKEND_DOWN");
    assert_eq!(health(&api)["backend"]["state"], "down");
    let late = lab.volume();
    intend(&api, &late);
    let mut late_disk = lab.disk(&late.serial, MIB).unwrap();
    late_disk.attach().unwrap();
    wait(&api, &late, "exporting");
    lab.nbdkit_start().unwrap();
    wait(&api, &volume, "ready");
    wait(&api, &late, "ready");
    lab.nbdcopy_equals(&volume.export(), disk.file()).unwrap();
    lab.nbdcopy_equals(&late.export(), late_disk.file()).unwrap();
}

/// attachd's own work on an export does not wake it again: the handshake opens the disk on the server's side, and
/// udev's watch would turn the close into a `change` event.
#[test]
fn a_handshake_causes_no_event() {
    let (mut lab, _attachd, api) = up();
    let (volume, disk) = served(&lab, &api);
    let listener = lab.bare_listener().unwrap();
    let name = disk.node().to_str().unwrap().to_owned();
    lab.nbdcopy_equals(&volume.export(), disk.file()).unwrap();
    resync(&api);
    lab.udevd().settle().unwrap();
    let ours = |heard: &lab::Heard| heard.get("DEVNAME") == name;
    assert_eq!(listener.drain().unwrap().iter().filter(|heard| ours(heard)).count(), 0);
    // The control: the close of an unclaimed disk causes an event.
    let other = lab.volume();
    let unclaimed = lab.settled_disk(&other.serial, MIB).unwrap();
    let unclaimed_name = unclaimed.node().to_str().unwrap().to_owned();
    listener.drain().unwrap();
    drop(std::fs::OpenOptions::new().write(true).open(unclaimed.node()).unwrap());
    listener.wait_for(SOON, |heard| heard.get("DEVNAME") == unclaimed_name).unwrap();
}

#[test]
fn the_predecessors_tables_show_what_is_served_and_nothing_else() {
    let (lab, mut attachd, api) = up();
    let (kept, _disk) = served(&lab, &api);
    let (gone, _other) = served(&lab, &api);
    withdraw(&api, &gone);
    // An orderly stop writes the missing rows.
    attachd.terminate().unwrap();
    let sql = |text: &str| {
        let output =
            std::process::Command::new("sqlite3").args(["/var/lib/attachd/attachd.db", text]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let mapping = sql(
        "SELECT volume_uuid, device_path, size, cloudstack_state, linux_state, operation_mode FROM device_mappings",
    );
    assert_eq!(mapping, format!("{}|{}|{MIB}|attached|detected|oma\n", kept.id, kept.link().display()));
    let export = sql("SELECT volume_id, export_name, port, status FROM nbd_exports");
    assert_eq!(export, format!("{}|{}|10809|active\n", kept.id, kept.export()));
}

/// Invariant 1: the by-id link is the duplicate's until udev changes it, and may lead anywhere once the duplicate is
/// gone.
#[test]
fn after_a_duplicate_the_survivor_is_published_only_when_the_link_leads_to_it() {
    let (mut lab, _attachd, api) = up();
    let (volume, disk) = served(&lab, &api);
    let mut twin =
        lab.disk_with(&volume.serial, MIB, lab::DiskOptions { seed: Some(7), ..Default::default() }).unwrap();
    lab.attach_settled(&mut twin).unwrap();
    wait(&api, &volume, "refused");
    assert_eq!(std::fs::canonicalize(volume.link()).unwrap(), twin.node(), "the control: the twin has the link");
    lab.udevd().stop().unwrap();
    let number = twin.number();
    twin.detach().unwrap();
    let stranger = lab.volume();
    let mut other = lab.disk(&stranger.serial, 2 * MIB).unwrap();
    other.attach_as(number).unwrap();
    // Now only the link keeps the server from the other disk.
    std::os::unix::fs::chown(other.node(), None, Some(lab::people::NBD.id)).unwrap();
    std::fs::set_permissions(other.node(), std::os::unix::fs::PermissionsExt::from_mode(0o660)).unwrap();
    let mut events = api.events().unwrap();
    let elsewhere = |shown: &serde_json::Value| shown["reason"]["code"] == "LINK_ELSEWHERE";
    let shown = show(&api, &volume);
    if !elsewhere(&shown) {
        events.wait_for(elsewhere, SOON).unwrap();
    }
    assert!(!lab.nbd_connects(&volume.export()));
    lab.udevd().start().unwrap();
    lab.retrigger(&disk).unwrap();
    wait(&api, &volume, "ready");
    lab.nbdcopy_equals(&volume.export(), disk.file()).unwrap();
}

/// Invariant 8: a field that a request leaves out is not compared, whatever the default is by now.
#[test]
fn a_request_without_a_vm_does_not_ask_for_the_hosts_own_vm() {
    let mut lab = lab::Lab::new();
    lab.attachd_config(&format!("{CONFIG}[host]\nvm_id = \"vm-host\"\n")).unwrap();
    lab.nbdkit_start().unwrap();
    let attachd = start(&lab);
    let api = attachd.api();
    let (named, unnamed) = (lab.volume(), lab.volume());
    let body = json!({ "volume_id": named.id, "vm_id": "vm-9" });
    assert_eq!(api.post("/api/v1/intents", &body).unwrap().expect(201).unwrap()["vm_id"], "vm-9");
    let again = api.post("/api/v1/intents", &json!({ "volume_id": named.id })).unwrap().expect(200).unwrap();
    assert_eq!(again["vm_id"], "vm-9");
    assert_eq!(intend(&api, &unnamed)["vm_id"], "vm-host");
}

/// A failure that repeats is reported once.
#[test]
fn retries_do_not_fill_the_timeline() {
    let (mut lab, _attachd, api) = up();
    let (volume, disk) = served(&lab, &api);
    let mode = |bits| std::os::unix::fs::PermissionsExt::from_mode(bits);
    std::fs::set_permissions(disk.node(), mode(0o600)).unwrap();
    lab.nbdkit_kill().unwrap();
    let mut events = api.events().unwrap();
    lab.nbdkit_start().unwrap();
    events.wait_for(|event| event["reason"]["code"] == "EXPORT_REFUSED", SOON).unwrap();
    let before = show(&api, &volume)["timeline"].as_array().unwrap().len();
    // Each resync causes a retry.
    for _ in 0..5 {
        resync(&api);
    }
    std::fs::set_permissions(disk.node(), mode(0o660)).unwrap();
    let shown = wait(&api, &volume, "ready");
    assert!(shown["timeline"].as_array().unwrap().len() <= before + 2, "{shown:#}");
}

/// Invariant 4: `ready` means served with the device's own size, whatever program listens on the port.
#[test]
fn a_server_that_reports_another_size_never_makes_a_volume_ready() {
    let lab = lab::Lab::new();
    lab.attachd_config(CONFIG).unwrap();
    // A process with nbdkit's name, and a server on its port that reports a wrong size.
    let name = lab.dir().join("nbdkit");
    std::fs::copy("/bin/sleep", &name).unwrap();
    let server = lab::child::Proc::spawn("nbdkit", std::process::Command::new(&name).arg("1000")).unwrap();
    std::fs::write("/run/attachd-nbdkit/nbdkit.pid", server.pid().to_string()).unwrap();
    let port = TcpListener::bind("127.0.0.1:10809").unwrap();
    let size = Arc::new(AtomicU64::new(2 * MIB));
    let told = Arc::clone(&size);
    std::thread::spawn(move || port.incoming().for_each(|client| lie(client.unwrap(), told.load(Ordering::SeqCst))));

    let attachd = start(&lab);
    let api = attachd.api();
    let mut events = api.events().unwrap();
    let (volume, _disk) = attached(&lab, &api);
    let differs = events.wait_for(|event| event["reason"]["code"] == "SIZE_DIFFERS", SOON).unwrap();
    assert_eq!(differs["state"], "exporting");
    assert!(differs["reason"]["message"].as_str().unwrap().contains("2097152"), "{differs:#}");
    // The control: the same server with the right size.
    size.store(MIB, Ordering::SeqCst);
    wait(&api, &volume, "ready");
}

/// Runs a small NBD server that accepts any export and reports this size.
fn lie(mut client: TcpStream, size: u64) {
    client.write_all(b"NBDMAGICIHAVEOPT\0\x03").unwrap();
    let mut asked = [0; 4 + 16];
    if client.read_exact(&mut asked).is_err() {
        return;
    }
    let length = u32::from_be_bytes(asked[16..20].try_into().unwrap());
    client.read_exact(&mut vec![0; length as usize]).unwrap();
    let reply = |kind: u32, data: &[u8]| {
        let head = [&0x0003_e889_0455_65a9_u64.to_be_bytes()[..], &7_u32.to_be_bytes(), &kind.to_be_bytes()].concat();
        [&head[..], &u32::try_from(data.len()).unwrap().to_be_bytes(), data].concat()
    };
    let info = [&[0, 0][..], &size.to_be_bytes(), &[0, 1]].concat();
    client.write_all(&[reply(3, &info), reply(1, b"")].concat()).unwrap();
    let _ = client.read_to_end(&mut Vec::new());
}

/// Invariant 9: nothing is created or removed under `/dev`, no node is opened, and no program is run.
#[test]
fn a_volumes_whole_life_changes_nothing_under_dev_and_runs_no_other_program() {
    let lab = with_nbdkit();
    let log = lab.dir().join("strace");
    let options = lab::AttachdOptions {
        wrapper: ["strace", "-f", "-y", "-e", "trace=%file,%process", "-o", log.to_str().unwrap()]
            .map(str::to_owned)
            .to_vec(),
        ..Default::default()
    };
    let mut attachd = lab.attachd_start(bin(), &options).unwrap();
    let api = attachd.api();
    let (volume, mut disk) = served(&lab, &api);
    disk.detach().unwrap();
    wait(&api, &volume, "lost");
    disk.attach().unwrap();
    wait(&api, &volume, "ready");
    withdraw(&api, &volume);
    attachd.terminate().unwrap();
    let text = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> =
        text.lines().skip_while(|line| !(line.contains("open") && line.contains("attachd.toml"))).collect();
    assert!(lines.iter().any(|line| line.contains("/dev/disk/by-id/loop-")), "the control: the log shows the link");
    for line in lines {
        // Another thread's call can be printed in the middle of a call; the rest of that call is then on a line of
        // its own.
        let is = |call: &str| line.contains(&format!("{call}(")) || line.contains(&format!("<... {call} resumed>"));
        let harmless = ["stat", "statx", "newfstatat", "readlink", "readlinkat"].into_iter().any(is);
        // SQLite reads its random numbers from there.
        let under_dev = line.replace("\"/dev/urandom", "").contains("\"/dev/") && !harmless;
        // An export leads to a path below /dev, and is made below /run.
        let export = line.contains("symlinkat(") && line.contains("</run/attachd/exports>, \"migration-vol-");
        assert!(!under_dev || export, "{line}");
        let reader = r#"execve("/proc/self/exe", ["/proc/self/exe", "read-attributes"], "#;
        assert!(!line.contains("execve(") || line.contains(reader), "{line}");
    }
}

fn run(program: &str, arguments: &[&str]) {
    let status = std::process::Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

/// Invariant 11: health reports a volume that is not served any more or has passed its deadline, until that is over.
#[test]
fn health_reports_lost_and_expired_volumes_until_they_recover() {
    let (lab, _attachd, api) = up();
    let problems = || {
        let health = health(&api);
        let codes = health["problems"].as_array().unwrap().iter().map(|problem| problem["code"].as_str().unwrap());
        (health["status"].clone(), codes.map(str::to_owned).collect::<Vec<_>>())
    };
    let none: Vec<String> = Vec::new();
    let (volume, mut disk) = served(&lab, &api);
    assert_eq!(problems(), (json!("healthy"), none.clone()), "the control");
    disk.detach().unwrap();
    wait(&api, &volume, "lost");
    assert_eq!(problems(), (json!("degraded"), vec!["VOLUMES_LOST".to_owned()]));
    disk.attach().unwrap();
    wait(&api, &volume, "ready");
    assert_eq!(problems(), (json!("healthy"), none.clone()));
    let late = lab.volume();
    api.post("/api/v1/intents", &json!({ "volume_id": late.id, "deadline_seconds": 0 })).unwrap().expect(201).unwrap();
    wait(&api, &late, "expired");
    assert_eq!(problems(), (json!("degraded"), vec!["VOLUMES_EXPIRED".to_owned()]));
    withdraw(&api, &late);
    assert_eq!(problems(), (json!("healthy"), none));
}
