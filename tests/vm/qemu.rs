//! Debian 13's QEMU, whatever the machine has. That of Debian 12 (7.2) does not run the kernel of Debian 13, and is
//! slower.

use std::process::Command;

/// Returns QEMU without arguments. It is unpacked beside the build and uses none of the machine's libraries.
pub(crate) fn qemu() -> Command {
    let root = lab::debian::unpacked("trixie", "qemu-system-x86")
        .unwrap_or_else(|error| panic!("there is no QEMU to run the guest in: {error:#}"));
    let libraries = root.join("usr/lib/x86_64-linux-gnu");
    let mut qemu = Command::new(libraries.join("ld-linux-x86-64.so.2"));
    qemu.arg("--library-path").arg(&libraries).arg(root.join("usr/bin/qemu-system-x86_64"));
    for firmware in ["usr/share/qemu", "usr/share/seabios"] {
        qemu.arg("-L").arg(root.join(firmware));
    }
    qemu
}
