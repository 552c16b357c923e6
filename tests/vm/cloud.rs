//! The guest as CloudStack's: its id in SMBIOS, a network on which the cloud is reached, and disks that the cloud plugs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Volume;
use serde_json::json;
use stand_in::{Cloud, Plug, Setup, Unit, Vm};

use crate::disk::{Bus, Disk};
use crate::machine::{Machine, SLOTS, blockdev, node};
use crate::qmp::Qmp;
use crate::wire::Door;

/// Where the guest finds this side.
const THIS_SIDE: &str = "10.0.2.2";
/// The address of its network card.
const MAC: &str = "02:00:00:a7:7a:c4";

/// How long CloudStack waits for a guest to let go of a disk, and more under software emulation.
const LETS_GO: Duration = Duration::from_mins(1);

/// The disks' names at their places.
pub(crate) type Slots = Arc<Mutex<[Option<String>; SLOTS]>>;

pub(crate) struct GuestCloud {
    stand_in: Cloud,
    hypervisor: Arc<Hypervisor>,
    vm: String,
}

impl GuestCloud {
    pub(crate) fn start(machine: Machine, folder: &Path, slots: &Slots) -> Self {
        let hypervisor = Hypervisor {
            machine,
            folder: folder.to_owned(),
            slots: Arc::clone(slots),
            monitor: Mutex::default(),
            disks: Mutex::default(),
        };
        let hypervisor = Arc::new(hypervisor);
        let stand_in = Cloud::start(Setup::default(), Arc::clone(&hypervisor) as Arc<dyn Plug>).unwrap();
        let vm = Volume::random().id;
        stand_in.add_vm(Vm { macs: vec![MAC.to_owned()], here: true, ..Vm::running(&vm, "appliance") });
        Self { stand_in, hypervisor, vm }
    }

    /// What QEMU is told besides: who the guest is, its card, and a monitor of the cloud's own.
    pub(crate) fn arguments(&self, qemu: &mut Command, monitor: &Door) {
        let vm = &self.vm;
        let about = format!(
            "type=1,manufacturer=Apache Software Foundation,product=CloudStack KVM Hypervisor,serial={vm},uuid={vm}"
        );
        qemu.args(["-uuid", vm, "-smbios", &about]);
        qemu.args(["-netdev", "user,id=net", "-device", &format!("virtio-net-pci,netdev=net,mac={MAC}")]);
        qemu.args(["-chardev", &format!("socket,id=cloud,path={}", monitor.path()), "-mon", "cloud,mode=control"]);
    }

    /// The machine is on, and this is the cloud's monitor of it.
    pub(crate) fn power(&self, monitor: Option<Qmp>) {
        *locked(&self.hypervisor.monitor) = monitor;
    }

    /// Puts a volume there that is ready and attached to nothing.
    pub(crate) fn add(&self, volume: &Volume, size: u64) {
        self.stand_in.add_volume(stand_in::Volume::ready(&volume.id, "a volume", size));
    }

    /// The VM that the guest is.
    pub(crate) fn vm(&self) -> &str {
        &self.vm
    }

    /// The disk of a volume that was plugged.
    pub(crate) fn disk(&self, volume: &Volume) -> Disk {
        locked(&self.hypervisor.disks).get(&volume.id).expect("it was plugged").clone()
    }

    /// A script for the guest that brings its card up, at each boot.
    pub(crate) fn network(&self) -> String {
        let network = "[Match]\\nMACAddress=02:00:00:a7:7a:c4\\n[Network]\\nAddress=10.0.2.15/24\\nIPv6AcceptRA=no\\n";
        format!(
            "printf '{network}' >/etc/systemd/network/10-cloud.network && systemctl enable --now systemd-networkd && \
             timeout 60 bash -c 'until (exec 3<>/dev/tcp/{THIS_SIDE}/{}) 2>/dev/null; do sleep 0.1; done'",
            self.stand_in.address().port()
        )
    }

    /// A script for the guest: attachd is told of the cloud and gets its keys, as an administrator would do it.
    pub(crate) fn configured(&self) -> String {
        let (key, port) = (self.stand_in.key(), self.stand_in.address().port());
        let (id, secret) = (key.key, key.secret);
        let url = format!("http://{THIS_SIDE}:{port}/client/api");
        format!(
            "umask 077 && printf %s '{id}' >/etc/attachd/cloudstack-key && printf %s '{secret}' >/etc/attachd/cloudstack-secret \
             && sed -i '/^\\[cloudstack\\]/a url = \"{url}\"\\ninsecure = true' /etc/attachd/attachd.toml \
             && attachctl check-config && systemctl restart attachd"
        )
    }

    /// A script for the guest: its attachd may connect to the cloud.
    pub(crate) fn let_out() -> String {
        let place = "/etc/systemd/system/attachd.service.d";
        format!(
            "mkdir -p {place} && sed 's/^IPAddressAllow=.*/IPAddressAllow={THIS_SIDE}/' /usr/share/attachd/cloudstack.conf \
             >{place}/cloudstack.conf && systemctl daemon-reload && systemctl restart attachd"
        )
    }
}

impl std::ops::Deref for GuestCloud {
    type Target = Cloud;

    fn deref(&self) -> &Cloud {
        &self.stand_in
    }
}

/// Who plugs and pulls for the cloud.
struct Hypervisor {
    machine: Machine,
    folder: PathBuf,
    slots: Slots,
    monitor: Mutex<Option<Qmp>>,
    disks: Mutex<BTreeMap<String, Disk>>,
}

impl Hypervisor {
    fn made(&self, unit: &Unit) -> Disk {
        let mut disks = locked(&self.disks);
        let disk = disks.entry(unit.volume.clone()).or_insert_with(|| {
            let disk = Disk::of(&self.folder, &Volume::of(&unit.volume), unit.size);
            Disk { serial: unit.serial.clone().unwrap_or_default(), ..disk }
        });
        disk.bus = match unit.bus {
            stand_in::Bus::Virtio => Bus::Virtio,
            stand_in::Bus::Scsi => Bus::Scsi,
        };
        disk.clone()
    }
}

impl Plug for Hypervisor {
    fn plug(&self, unit: &Unit) -> Result<()> {
        let disk = self.made(unit);
        let slot = {
            let mut slots = locked(&self.slots);
            let slot = slots.iter().position(Option::is_none).context("no free slot")?;
            slots[slot] = Some(disk.id.clone());
            slot
        };
        let mut monitor = locked(&self.monitor);
        let monitor = monitor.as_mut().context("the machine is off")?;
        for (command, arguments) in
            [("blockdev-add", blockdev(&disk)), ("device_add", self.machine.device(&disk, slot))]
        {
            monitor.try_execute(command, &arguments).map_err(anyhow::Error::msg).context(command)?;
        }
        Ok(())
    }

    fn unplug(&self, volume: &str) -> Result<()> {
        let disk = locked(&self.disks).get(volume).context("it was never plugged")?.clone();
        let mut monitor = locked(&self.monitor);
        let monitor = monitor.as_mut().context("the machine is off")?;
        monitor.try_execute("device_del", &json!({ "id": disk.id })).map_err(anyhow::Error::msg)?;
        let gone = |event: &serde_json::Value| {
            event["event"] == "DEVICE_DELETED" && event["data"]["device"] == disk.id.as_str()
        };
        ensure!(monitor.wait(gone, LETS_GO).is_some(), "the guest does not let go of {}", disk.id);
        monitor.try_execute("blockdev-del", &json!({ "node-name": node(&disk) })).map_err(anyhow::Error::msg)?;
        locked(&self.slots).iter_mut().filter(|slot| slot.as_deref() == Some(&disk.id)).for_each(|slot| *slot = None);
        Ok(())
    }
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
