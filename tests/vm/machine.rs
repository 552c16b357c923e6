//! The parameters of QEMU: the machine, its slots, its disks.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::agent::PORT;
use crate::disk::{Bus, Disk};
use crate::image::ROOT_UUID;
use crate::qemu::qemu;
use crate::wire::Door;

/// Chipsets with different kinds of hotplug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Machine {
    /// i440FX, with ACPI hotplug on the one bus.
    Pc,
    /// Q35, with one root port per disk.
    Q35,
}

/// The limit of disks that a guest can have at once.
pub(crate) const SLOTS: usize = 20;

/// QEMU's names.
pub(crate) const AGENT: &str = "agent";
const SCSI: &str = "scsi";

impl Machine {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pc => "pc",
            Self::Q35 => "q35",
        }
    }

    /// Returns the command line, without disks. It uses software emulation, because KVM inside a virtual machine is
    /// not available everywhere.
    pub(crate) fn command(self, kernel: &Path, initrd: &Path, console: &str, monitor: &Door, agent: &Door) -> Command {
        let mut qemu = qemu();
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        qemu.args(["-machine", self.name(), "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024"]);
        // Kernel and initramfs are taken out of the image: a boot loader would only take time.
        qemu.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
        qemu.args(["-append", &format!("root=UUID={ROOT_UUID} ro console=ttyS0")]);
        qemu.args(["-serial", &format!("file:{console}")]);
        qemu.args(["-chardev", &format!("socket,id=monitor,path={}", monitor.path()), "-mon", "monitor,mode=control"]);
        qemu.args(["-device", "virtio-serial-pci", "-chardev", &format!("socket,id=agent,path={}", agent.path())]);
        qemu.args(["-device", &format!("virtserialport,id={AGENT},chardev=agent,name={PORT}")]);
        qemu.args(["-device", "virtio-rng-pci", "-device", &format!("virtio-scsi-pci,id={SCSI}")]);
        if self == Self::Q35 {
            for slot in 0..SLOTS {
                let number = slot + 1;
                qemu.args(["-device", &format!("pcie-root-port,id=slot{slot},chassis={number},slot={number}")]);
            }
        }
        qemu
    }

    /// Returns the arguments of `device_add` for a disk in a slot.
    pub(crate) fn device(self, disk: &Disk, slot: usize) -> Value {
        let driver = match disk.bus {
            Bus::Virtio => "virtio-blk-pci",
            Bus::Scsi => "scsi-hd",
        };
        let mut device = json!({ "driver": driver, "id": disk.id, "drive": node(disk) });
        if !disk.serial.is_empty() {
            device["serial"] = json!(disk.serial);
        }
        if disk.storage.is_some() {
            // One queue, so that a full queue blocks every request.
            device["num-queues"] = json!(1);
        }
        match (disk.bus, self) {
            (Bus::Scsi, _) => device["bus"] = json!(format!("{SCSI}.0")),
            (Bus::Virtio, Self::Q35) => device["bus"] = json!(format!("slot{slot}")),
            (Bus::Virtio, Self::Pc) => {
                device["bus"] = json!("pci.0");
                // Above the machine's own devices.
                device["addr"] = json!(format!("{:#x}", 32 - SLOTS + slot));
            }
        }
        device
    }
}

/// Returns the arguments of `blockdev-add` for a disk.
pub(crate) fn blockdev(disk: &Disk) -> Value {
    let file = match &disk.storage {
        None => json!({ "driver": "file", "filename": disk.file, "locking": "off" }),
        Some(socket) => json!({ "driver": "nbd", "server": { "type": "unix", "path": socket } }),
    };
    json!({ "driver": "raw", "node-name": node(disk), "read-only": disk.read_only, "file": file })
}

/// Returns the name of a disk's contents.
pub(crate) fn node(disk: &Disk) -> String {
    format!("{}-file", disk.id)
}
