//! A start on a full disk: recorded volumes stay served, and everything recovers when there is room.

use lab::Volume;

use crate::disk::MIB;
use crate::guest::Guest;
use crate::machine::Machine;

/// Allocates every block, even those that are reserved for root.
const FILL: &str = "mkdir /fill; n=0; for size in 1G 256M 64M 16M 4M 1M 256K 64K 4K; do \
    while fallocate -l $size /fill/$n 2>/dev/null; do n=$((n+1)); done; rm -f /fill/$n; done; ! dd if=/dev/zero of=/fill/x bs=4k count=1 2>/dev/null; test ! -s /fill/x";

#[test]
fn a_start_on_a_full_disk_serves_recorded_volumes_and_the_rest_when_there_is_room() {
    let guest =
        Guest::up("a_start_on_a_full_disk_serves_recorded_volumes_and_the_rest_when_there_is_room", Machine::Q35);
    let volume = Volume::random();
    let disk = guest.disk(&volume, 4 * MIB);
    guest.intend(&volume);
    guest.plug(&disk);
    guest.wait(&volume, "ready");
    guest.run("systemctl kill --signal=KILL attachd.service && journalctl --rotate --vacuum-size=1M");
    guest.run("systemctl stop attachd.socket attachd.service");
    guest.run(FILL);
    // systemd may have to start it more than once.
    guest.run("systemctl start --no-block attachd.socket attachd.service");
    guest.eventually("attachctl --json health 2>&1 | grep -q STORE_FULL");
    println!("{}", guest.output("attachctl health").out);
    guest.export_equals(&volume, &disk);
    let refused = guest.intend_in_vain(&Volume::random());
    assert_eq!(refused["code"], "STORE_FULL", "the control: there is no room: {refused}");
    guest.run("rm -r /fill");
    guest.eventually("attachctl health");
    guest.wait(&volume, "ready");
    guest.export_equals(&volume, &disk);
    guest.intend(&Volume::random());
    let story = guest.show(&volume)["timeline"].to_string();
    assert!(!story.contains("revoked"), "{story}");
}
