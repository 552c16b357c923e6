//! Volumes that CloudStack attaches to the guest.

use std::time::Duration;

use lab::Volume;
use stand_in::{Gate, JobFault};

use crate::cloud::GuestCloud;
use crate::disk::MIB;
use crate::guest::Guest;
use crate::machine::Machine;

/// Longer than anything takes that works.
const LONG: Duration = Duration::from_mins(2);

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

/// Eleven disks of one machine, one command each; the guest restarts when CloudStack has attached five of them, has begun with
/// the others, and goes on meanwhile.
#[test]
fn eleven_volumes_are_attached_by_one_command_each_and_served_across_a_reboot() {
    let name = "eleven_volumes_are_attached_by_one_command_each_and_served_across_a_reboot";
    let guest = Guest::up_in_cloud(name, Machine::Q35);
    let cloud = guest.cloud();
    guest.run(&cloud.configured());
    let volumes: Vec<_> = (0..11).map(|_| Volume::random()).collect();
    for volume in &volumes {
        cloud.add(volume, 4 * MIB);
    }

    // The unit as it is shipped connects to this host only.
    let kept_in = guest.output(&format!("attachctl attach {}", volumes[0].id));
    assert!(kept_in.code != 0 && kept_in.err.contains("IPAddressAllow"), "{kept_in:?}");
    assert!(guest.output("attachctl health").out.contains("IPAddressAllow"), "health says so, too");
    assert!(cloud.calls().is_empty(), "the control: CloudStack has heard nothing: {}", cloud.told());
    guest.run(&GuestCloud::let_out());

    let (first, later) = volumes.split_at(5);
    for volume in first {
        println!("{}", guest.run(&format!("attachctl attach {} --wait", volume.id)).trim());
    }
    let gate = Gate::new();
    for _ in later {
        cloud.next_job("attachVolume", JobFault::Held(gate.clone()));
    }
    for volume in later {
        guest.run(&format!("attachctl attach {}", volume.id));
    }
    assert!(gate.reached_by(later.len(), LONG), "{}", cloud.told());
    let boot = guest.run("cat /proc/sys/kernel/random/boot_id");
    guest.reboot();
    assert_ne!(guest.run("cat /proc/sys/kernel/random/boot_id"), boot, "the control: it has restarted");
    gate.open();
    for volume in &volumes {
        guest.wait(volume, "ready");
        guest.export_equals(volume, &cloud.disk(volume));
    }
    guest.eventually("! attachctl operations | grep -q executing");
    let listed = guest.run("attachctl operations");
    println!("{listed}{}", cloud.told());
    assert_eq!(listed.matches(" completed ").count(), volumes.len(), "{listed}");
    // The witness: each was asked for once.
    for volume in &volumes {
        let asked = cloud.calls_of("attachVolume").iter().filter(|call| call.get("id") == volume.id).count();
        assert_eq!(asked, 1, "{}: {}", volume.id, cloud.told());
    }
    let ready = volumes.iter().filter(|volume| guest.show(volume)["state"] == "ready").count();
    assert_eq!(ready, volumes.len());
}

/// CloudStack can attach a data disk by the bus of the VM's data disks, which is not that of its root disk.
#[test]
fn a_volume_that_cloudstack_attaches_by_the_other_bus_is_told_with_the_scheme_to_set_and_served_with_it() {
    let name = "a_volume_that_cloudstack_attaches_by_the_other_bus_is_told_with_the_scheme_to_set_and_served_with_it";
    let guest = Guest::up_in_cloud(name, Machine::Q35);
    let (cloud, volume) = (guest.cloud(), Volume::random());
    guest.run(&cloud.configured());
    guest.run(&GuestCloud::let_out());
    cloud.add(&volume, 4 * MIB);
    cloud.change_volume(&volume.id, |volume| volume.bus = stand_in::Bus::Scsi);
    let refused = guest.output(&format!("attachctl attach {} --wait --deadline 60", volume.id));
    println!("{}{}", refused.out, refused.err);
    let told = format!("{}{}", refused.out, refused.err);
    assert!(refused.code != 0 && told.contains("SCHEME_OFF") && told.contains("schemes"), "{refused:?}");
    guest.run("sed -i 's/^#*schemes = .*/schemes = [\"virtio\", \"scsi\"]/' /etc/attachd/attachd.toml && systemctl restart attachd");
    guest.wait(&volume, "ready");
    guest.export_equals(&volume, &cloud.disk(&volume));
}
