//! The main job: from an announced volume and a disk to an export, and back.

mod common;

use common::*;

#[test]
fn an_intent_before_its_disk_is_served_byte_for_byte() {
    let (lab, _attachd, api) = up();
    let (volume, disk) = served(&lab, &api);
    let shown = show(&api, &volume);
    println!("{shown:#}");
    assert_eq!(shown["device_path"], volume.link().to_str().unwrap());
    assert_eq!(shown["device_node"], disk.node().to_str().unwrap());
    assert_eq!(shown["size_bytes"], MIB);
    assert_eq!(shown["export"]["state"], "served");
    assert_eq!(story(&shown), ["intent", "heard", "proven", "recorded", "published", "ready"]);
    lab.nbdcopy_equals(&volume.export(), disk.file()).unwrap();
}
