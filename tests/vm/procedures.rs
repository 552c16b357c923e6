//! The operating procedures of the predecessor's by-id design, typed as they stand, where links are `virtio-…`.

use lab::Volume;
use serde_json::Value;

use crate::cloud::GuestCloud;
use crate::disk::MIB;
use crate::guest::Guest;
use crate::image::ROOT_SERIAL;
use crate::machine::Machine;

/// The attach.
const ATTACH: &str = r#"curl -X POST "http://localhost:8090/api/v1/volumes/$VOLUME_ID/attach" \
     -d '{"volume_id": "'$VOLUME_ID'", "vm_id": "'$VM_ID'"}'"#;

/// The check whether a volume is attached.
const CHECK: &str = r#"if [ -L "$BY_ID_PATH" ]; then
    echo "Volume attached: $BY_ID_PATH → $(readlink -f $BY_ID_PATH)"
    echo "Size: $(blockdev --getsize64 $BY_ID_PATH | awk '{print $1/1024/1024/1024 " GB"}')"
    echo "NBD ready for replication"
else
    echo "Volume not attached or by-id path missing"
fi"#;

/// "Should match: by-id count = NBD export count".
const BY_ID_COUNT: &str = "ls -la /dev/disk/by-id/virtio-* | wc -l";
const NBD_COUNT: &str = "nbd-client -l localhost | wc -l";

#[test]
fn the_by_id_procedures_work_as_they_stand_and_the_right_count_is_attachctls() {
    let name = "the_by_id_procedures_work_as_they_stand_and_the_right_count_is_attachctls";
    let guest = Guest::up_in_cloud(name, Machine::Q35);
    let cloud = guest.cloud();
    guest.run(&cloud.configured());
    guest.run(&GuestCloud::let_out());
    guest.run(
        "sed -i 's/^#tcp = /tcp = /' /etc/attachd/attachd.toml && attachctl check-config && systemctl restart attachd",
    );
    // As on every installed host; curl knows that name without it.
    guest.run("grep -q localhost /etc/hosts || echo 127.0.0.1 localhost >>/etc/hosts");
    let count = |script: &str| guest.run(script).trim().parse::<usize>().unwrap();
    let served = || -> Value { serde_json::from_str(&guest.run("attachctl exports --json")).unwrap() };
    let by_id_path = |volume: &Volume| format!("/dev/disk/by-id/virtio-{}", volume.serial);

    let volumes: Vec<_> = (0..3).map(|_| Volume::random()).collect();
    for volume in &volumes {
        cloud.add(volume, 64 * MIB);
        let variables = format!("BY_ID_PATH={}\n", by_id_path(volume));
        let before = guest.run(&format!("{variables}{CHECK}"));
        assert!(before.starts_with("Volume not attached"), "the control: {before}");
        let begun = guest.run(&format!("VOLUME_ID={} VM_ID={}\n{ATTACH}", volume.id, cloud.vm()));
        let begun: Value = serde_json::from_str(&begun).unwrap();
        assert_eq!((&begun["type"], &begun["volume_id"]), (&"attach".into(), &volume.id.as_str().into()), "{begun:#}");
        let status = format!(
            "curl -s http://localhost:8090/api/v1/operations/{} | jq -r .status",
            begun["id"].as_str().unwrap()
        );
        guest.eventually(&format!("[ \"$({status})\" = completed ]"));
        let after = guest.run(&format!("{variables}{CHECK}"));
        println!("{after}");
        assert!(after.starts_with("Volume attached: ") && after.contains("\nSize: 0.0625 GB\n"), "{after}");
        guest.export_equals(volume, &cloud.disk(volume));
    }
    let health: Value = serde_json::from_str(&guest.run("curl http://localhost:8090/api/v1/health")).unwrap();
    assert_eq!(guest.run("curl -s http://localhost:8090/api/v1/health | jq '.status'").trim(), "\"degraded\"");
    let problems: Vec<_> = health["problems"].as_array().unwrap().iter().map(|problem| &problem["code"]).collect();
    assert_eq!(problems, ["CLOUD_INSECURE"], "this stand-in has no TLS, and that is all: {health:#}");

    // The counts. The first one has the root disk and its partitions, too; the second one has a line above the names.
    let links = guest.run("ls /dev/disk/by-id/virtio-*");
    let listed = guest.run("nbd-client -l localhost");
    println!("{links}{listed}");
    let root = links.lines().filter(|link| link.contains(ROOT_SERIAL)).count();
    assert!(root > 0, "the control: the root disk is counted: {links}");
    assert_eq!(count(BY_ID_COUNT), volumes.len() + root, "{links}");
    let named = listed.lines().filter(|line| line.starts_with("migration-vol-")).count();
    let heading = listed.lines().count() - named;
    assert!(named == volumes.len() && heading > 0, "the control: more than the names is counted: {listed}");
    assert_eq!(count(NBD_COUNT), volumes.len() + heading, "{listed}");
    assert!(volumes.iter().all(|volume| links.contains(&by_id_path(volume)) && listed.contains(&volume.export())));
    let right = served();
    assert_eq!((&right["count"], &right["served"]), (&3.into(), &serde_json::json!({ "due": 3, "openable": 3 })));
    assert!(guest.run("attachctl exports").contains("\n3 of 3 volumes with a proven disk can be opened.\n"));

    // A disk that nobody announced has a link and no export: by the counts of the page it could be anything.
    let stray = guest.disk(&Volume::random(), 4 * MIB);
    guest.plug(&stray);
    guest.eventually(&format!("[ -L /dev/disk/by-id/virtio-{} ]", stray.serial));
    assert_eq!((count(BY_ID_COUNT), count(NBD_COUNT)), (volumes.len() + root + 1, volumes.len() + heading));
    assert_eq!(served()["served"], right["served"], "the right count stays");
}
