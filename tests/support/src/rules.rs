//! The udev rules of the box, as text. They act on this lab's loop devices only.

use std::path::Path;

/// Twenty characters of a serial, as a udev pattern (which has no repetition).
fn serial_pattern() -> String {
    "[0-9a-f]".repeat(20)
}

/// `50-lab-identity.rules`: a loop device whose backing file is `<serial>.img` gets `ID_SERIAL` and a by-id link, as
/// the stock rules give them to virtio disks. Only for backing files of this lab, so that other labs' disks, which the
/// kernel announces here too, get neither. udev's `*` matches `/` as well; the class does not, so the name is exact.
/// (Not `ATTR{…}!=…, GOTO`: for a device without the attribute neither `==` nor `!=` matches.)
pub fn identity(disks: &Path) -> String {
    format!(
        r#"SUBSYSTEM!="block", GOTO="lab_identity_end"
KERNEL!="loop*", GOTO="lab_identity_end"
ENV{{DEVTYPE}}=="partition", IMPORT{{parent}}="ID_SERIAL"
ENV{{DEVTYPE}}=="partition", ENV{{ID_SERIAL}}=="?*", SYMLINK+="disk/by-id/loop-$env{{ID_SERIAL}}-part%n"
ENV{{DEVTYPE}}=="disk", ATTR{{loop/backing_file}}=="{}/*/{}.img", PROGRAM=="/usr/bin/basename $attr{{loop/backing_file}} .img", ENV{{ID_SERIAL}}="%c", SYMLINK+="disk/by-id/loop-%c"
LABEL="lab_identity_end"
"#,
        disks.display(),
        serial_pattern()
    )
}

/// `59-lab-claims.rules`: what the shipped rules do for a claimed virtio disk, for the loop scheme. Before file 60, so
/// that nothing probes the disk. `TEST` on a path that ends in an empty serial would be true for every disk: the exact
/// pattern comes first.
pub fn claims() -> String {
    format!(
        r#"ACTION=="remove", GOTO="lab_claims_end"
SUBSYSTEM!="block", GOTO="lab_claims_end"
KERNEL!="loop*", GOTO="lab_claims_end"
ENV{{ID_SERIAL}}!="{}", GOTO="lab_claims_end"
TEST=="/etc/attachd/host-disks/$env{{ID_SERIAL}}", GOTO="lab_claims_end"
TEST!="/var/lib/attachd/claims/$env{{ID_SERIAL}}", GOTO="lab_claims_end"
ENV{{ATTACHD_CLAIMED}}="1", ENV{{UDEV_DISABLE_PERSISTENT_STORAGE_BLKID_FLAG}}="1", ENV{{UDISKS_IGNORE}}="1"
ENV{{DEVTYPE}}=="disk", GROUP="attachd-nbd", MODE="0660"
LABEL="lab_claims_end"
"#,
        serial_pattern()
    )
}

/// `61-lab-claims.rules`: after `60-block.rules`, which sets the watch.
pub fn nowatch() -> String {
    "ACTION!=\"remove\", SUBSYSTEM==\"block\", KERNEL==\"loop*\", ENV{ATTACHD_CLAIMED}==\"1\", OPTIONS+=\"nowatch\"\n"
        .into()
}
