//! The guest's own disks: an announcement of one is refused, and the disk is unchanged.

use lab::Volume;

use crate::disk::{Disk, MIB};
use crate::guest::Guest;
use crate::image::{ROOT_SERIAL, ROOT_VOLUME};
use crate::machine::Machine;

/// A disk that the guest uses, and how.
struct Used {
    volume: Volume,
    /// The words for the use in the refusal.
    named: &'static str,
    /// A command that shows that the use continues.
    still: &'static str,
}

fn by_id(volume: &Volume) -> String {
    format!("/dev/disk/by-id/virtio-{}", volume.serial)
}

/// Returns owner, group and mode of the node.
fn node(guest: &Guest, volume: &Volume) -> String {
    guest.run(&format!("stat -L -c '%U %G %a' {}", by_id(volume))).trim().to_owned()
}

/// Makes attachd-helper, as only attachd and root may, have udev process a disk again.
fn ask_helper(volume: &Volume) -> String {
    let ask = r#"my $s = IO::Socket::UNIX->new("/run/attachd/helper.sock") or die; print $s "retrigger $ARGV[0]\n"; print <$s>"#;
    format!("perl -MIO::Socket::UNIX -e '{ask}' {}", volume.serial)
}

/// A control: an ordinary disk is served, and its node is the NBD server's.
fn an_ordinary_disk_is_served(guest: &Guest) -> (Volume, Disk) {
    let volume = Volume::random();
    let disk = guest.disk(&volume, 4 * MIB);
    guest.intend(&volume);
    guest.plug(&disk);
    guest.wait(&volume, "ready");
    assert_eq!(node(guest, &volume), "root attachd-nbd 660");
    (volume, disk)
}

#[test]
fn the_hosts_own_disks_are_refused_by_name_and_left_alone() {
    let guest = Guest::up("the_hosts_own_disks_are_refused_by_name_and_left_alone", Machine::Q35);
    let root = Volume::of(ROOT_VOLUME);
    let [mounted, swap, group] = std::array::from_fn(|_| Volume::random());
    for volume in [&mounted, &swap, &group] {
        guest.plug(&guest.blank(&volume.serial, 64 * MIB));
        guest.run(&format!("udevadm wait --settle --timeout=60 {}", by_id(volume)));
    }
    guest.run(&format!("mkfs.ext4 -q {0} && mkdir -p /srv/data && mount {0} /srv/data", by_id(&mounted)));
    guest.run(&format!("mkswap -q {0} && swapon {0}", by_id(&swap)));
    guest.run(&format!("vgcreate -qq own {} && lvcreate -qq -n own -l 1 own", by_id(&group)));
    let used = [
        Used { volume: root, named: "mounted at /", still: "findmnt -no SOURCE / | grep vd" },
        Used { volume: mounted, named: "mounted at /srv/data", still: "findmnt /srv/data && touch /srv/data/x" },
        Used { volume: swap, named: "used as swap", still: "grep /dev/vd /proc/swaps" },
        Used { volume: group, named: "held by dm-0", still: "lvs --noheadings -o lv_active own/own | grep active" },
    ];

    for Used { volume, named, still } in &used {
        let before = node(&guest, volume);
        assert_eq!(before, "root disk 660");
        let answer = guest.intend_in_vain(volume);
        println!("{answer}");
        assert_eq!(answer["code"], "IN_USE_BY_HOST", "{answer}");
        assert!(answer["error"].as_str().unwrap().contains(named), "{answer}");
        assert_eq!(node(&guest, volume), before);
        guest.run(still);
        // The privileged helper is the second protection: even with a forged claim it refuses. (attachd removes such
        // a claim at once, if it can.)
        let forge = format!("install -o attachd -g attachd /dev/null /var/lib/attachd/claims/{0}", volume.serial);
        let [stop, go_on] =
            ["STOP", "CONT"].map(|signal| format!("systemctl kill --signal=SIG{signal} attachd.service"));
        let refusal = guest.run(&format!("{stop} && {forge} && {}; {go_on}", ask_helper(volume)));
        println!("{}", refusal.trim());
        assert!(refusal.contains("IN_USE_BY_HOST") && refusal.contains(named), "{refusal}");
        assert_eq!(node(&guest, volume), before);
    }
    an_ordinary_disk_is_served(&guest);
    assert_eq!(guest.run("attachctl --json list | tr ',' '\\n' | grep -c volume_id").trim(), "1");

    // The worst case for the root disk: a forged claim, and then a boot.
    guest.run(&format!("touch /var/lib/attachd/claims/{ROOT_SERIAL}"));
    guest.run(&format!("udevadm trigger --action=add --settle {}", by_id(&used[0].volume)));
    assert_eq!(node(&guest, &used[0].volume), "root disk 660");
    guest.run(&format!("touch /var/lib/attachd/claims/{ROOT_SERIAL}; sync"));
    guest.reboot();
    assert_eq!(node(&guest, &used[0].volume), "root disk 660");
    assert!(guest.run("udevadm info --query=property --name=/dev/vda").contains("ID_FS_LABEL=guest-root"));
    let answer = guest.intend_in_vain(&used[0].volume);
    assert_eq!(answer["code"], "IN_USE_BY_HOST", "{answer}");
}
