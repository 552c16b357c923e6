//! udevd restarts, dies and is away while disks come and go.

use lab::Volume;

use crate::disk::{Disk, MIB};
use crate::guest::Guest;
use crate::machine::Machine;

const UDEVD: &str = "systemd-udevd-kernel.socket systemd-udevd-control.socket systemd-udevd.service";

#[test]
fn any_trouble_of_udevd_ends_with_the_same_served_volumes() {
    let guest = Guest::up("any_trouble_of_udevd_ends_with_the_same_served_volumes", Machine::Q35);
    let volumes: Vec<_> = (0..10).map(|_| Volume::random()).collect();
    let disks: Vec<_> = volumes.iter().map(|volume| guest.disk(volume, 2 * MIB)).collect();
    guest.intend_all(&volumes);
    let all_ready = |range: std::ops::Range<usize>| {
        for (volume, disk) in volumes[range.clone()].iter().zip(&disks[range]) {
            guest.wait(volume, "ready");
            guest.export_equals(volume, disk);
        }
    };

    println!("restarted while two disks come");
    guest.plug(&disks[0]);
    guest.run("systemctl restart systemd-udevd");
    guest.plug(&disks[1]);
    all_ready(0..2);

    println!("killed while two disks come");
    guest.plug(&disks[2]);
    guest.run("systemctl kill --kill-whom=all --signal=KILL systemd-udevd");
    guest.plug(&disks[3]);
    all_ready(0..4);

    println!("stopped, and started by its socket when two disks come");
    guest.run("systemctl stop systemd-udevd.service");
    guest.plug(&disks[4]);
    guest.plug(&disks[5]);
    all_ready(0..6);

    println!("everything replayed while a disk comes and attachd restarts");
    guest.run("for i in 1 2 3; do udevadm trigger --action=change; udevadm trigger --action=add; done");
    guest.plug(&disks[6]);
    guest.run("systemctl restart attachd & for i in 1 2 3; do udevadm trigger; done; wait");
    guest.plug(&disks[7]);
    all_ready(0..8);

    println!("stopped with its sockets while one disk goes and two come");
    guest.run(&format!("systemctl stop {UDEVD}"));
    guest.unplug(&disks[0]);
    guest.wait(&volumes[0], "lost");
    guest.plug(&disks[8]);
    guest.plug(&disks[9]);
    let serials = |disks: &[Disk]| disks.iter().map(|disk| disk.serial.clone()).collect::<Vec<_>>().join("\\|");
    guest.eventually(&format!("[ $(grep -l '{}' /sys/block/vd*/serial | wc -l) = 2 ]", serials(&disks[8..])));
    println!("{}", guest.run("attachctl health || true"));
    guest.run(&format!("systemctl start {UDEVD}"));
    // udevd does not process what it missed: attachd has it process the disks, by itself.
    all_ready(1..10);

    // At the end the present disks are served, and nothing else.
    assert_eq!(guest.show(&volumes[0])["state"], "lost");
    let mut links: Vec<_> = guest.run("ls /run/attachd/exports").lines().map(str::to_owned).collect();
    let mut wanted: Vec<_> = volumes[1..].iter().map(Volume::export).collect();
    links.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(links, wanted);
    guest.plug(&disks[0]);
    all_ready(0..10);
}
