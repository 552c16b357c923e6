//! The hypervisor is killed.

use lab::Volume;

use crate::disk::MIB;
use crate::guest::Guest;
use crate::machine::Machine;

#[test]
fn accepted_intents_survive_a_power_cut_during_eleven_attaches_and_the_rest_is_finished() {
    let name = "accepted_intents_survive_a_power_cut_during_eleven_attaches_and_the_rest_is_finished";
    let guest = Guest::up(name, Machine::Q35);
    let volumes: Vec<_> = (0..11).map(|_| Volume::random()).collect();
    let disks: Vec<_> = volumes.iter().map(|volume| guest.disk(volume, 4 * MIB)).collect();

    // Right after the last answer.
    guest.intend_all(&volumes);
    guest.power_cut();
    guest.start(&[]);
    for volume in &volumes {
        assert_eq!(guest.show(volume)["state"], "waiting");
        guest.run(&format!("test -e /var/lib/attachd/claims/{}", volume.serial));
    }

    // When the fourth of eleven is ready and others are in progress.
    guest.plug_all(&disks);
    guest.wait(&volumes[3], "ready");
    guest.power_cut();

    let turned: Vec<_> = disks.iter().rev().collect();
    guest.start(&turned);
    let mut ready_before = 0;
    for (volume, disk) in volumes.iter().zip(&disks) {
        let ready = guest.wait(volume, "ready");
        guest.export_equals(volume, disk);
        let timeline = ready["timeline"].as_array().unwrap();
        ready_before += usize::from(timeline.iter().filter(|entry| entry["event"] == "ready").count() == 2);
    }
    println!("{ready_before} of 11 were on record as ready when the power was cut");
    assert!(ready_before < 11, "the control: the cut came too late");
    assert_eq!(guest.run("sqlite3 /var/lib/attachd/attachd.db 'pragma integrity_check'").trim(), "ok");
}
