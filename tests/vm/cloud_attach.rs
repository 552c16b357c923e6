//! Volumes that CloudStack attaches to the guest.

use lab::Volume;

use crate::disk::MIB;
use crate::guest::Guest;
use crate::machine::Machine;

#[test]
fn a_volume_that_the_cloud_attaches_and_detaches_is_served_meanwhile() {
    let guest = Guest::up_in_cloud("a_volume_that_the_cloud_attaches_and_detaches_is_served_meanwhile", Machine::Q35);
    let (cloud, volume) = (guest.cloud(), Volume::random());
    let [uuid, serial] = ["product_uuid", "product_serial"]
        .map(|file| guest.run(&format!("cat /sys/class/dmi/id/{file}")).trim().to_lowercase());
    assert_eq!((uuid.as_str(), serial.as_str()), (cloud.vm(), cloud.vm()), "the guest knows which VM it is");
    cloud.add(&volume, 4 * MIB);
    guest.intend(&volume);
    cloud.attach(&volume.id, cloud.vm()).unwrap();
    guest.wait(&volume, "ready");
    guest.export_equals(&volume, &cloud.disk(&volume));
    cloud.detach(&volume.id).unwrap();
    guest.wait(&volume, "lost");
}
