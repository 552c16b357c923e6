//! What the cloud has, and what it allows: CloudStack's checks with its words.

use crate::answer::Refusal;
use crate::plug::{Bus, Unit, serial};
use std::collections::BTreeMap;

/// Which servers there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Age {
    /// Ignores `customjobid` and the resource in `listAsyncJobs`; says 530 of whatever a job failed of.
    Old,
    /// Takes the caller's job id; lists the jobs of one resource.
    New,
}

/// What a volume is to its VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What it boots from.
    Root,
    /// Any other.
    Data,
}

/// A volume.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Its id.
    pub id: String,
    /// Its name; not unique.
    pub name: String,
    /// In bytes.
    pub size: u64,
    /// Such as `Ready`.
    pub state: String,
    /// Root or data.
    pub kind: Kind,
    /// The VM it is attached to.
    pub vm: Option<String>,
    /// Its place there.
    pub device_id: Option<u32>,
    /// It cannot be deleted.
    pub delete_protection: bool,
    /// A snapshot of it is being made.
    pub snapshot: bool,
    /// The hypervisor gives it its serial: not so for what was restored from a backup.
    pub has_serial: bool,
    /// Where the guest sees it.
    pub bus: Bus,
    /// Its disk is in the guest.
    pub plugged: bool,
    /// It was deleted: its id is still known.
    pub removed: bool,
}

impl Volume {
    /// One that is ready and attached to nothing.
    pub fn ready(id: &str, name: &str, size: u64) -> Volume {
        Volume {
            id: id.to_owned(),
            name: name.to_owned(),
            size,
            state: "Ready".to_owned(),
            kind: Kind::Data,
            vm: None,
            device_id: None,
            delete_protection: false,
            snapshot: false,
            has_serial: true,
            bus: Bus::Virtio,
            plugged: false,
            removed: false,
        }
    }

    pub(crate) fn unit(&self) -> Unit {
        let serial = self.has_serial.then(|| serial(&self.id));
        Unit { volume: self.id.clone(), serial, size: self.size, bus: self.bus }
    }
}

/// A virtual machine.
#[derive(Debug, Clone)]
pub struct Vm {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Such as `Running`.
    pub state: String,
    /// Of its network cards.
    pub macs: Vec<String>,
    /// Its disks are really plugged: it is the host under test.
    pub here: bool,
    /// How many data disks it can have.
    pub max_data_disks: usize,
    /// It has VM snapshots.
    pub has_snapshots: bool,
    /// It has backups.
    pub has_backups: bool,
    /// It was expunged: its id is still known.
    pub removed: bool,
}

impl Vm {
    /// One that runs.
    pub fn running(id: &str, name: &str) -> Vm {
        Vm {
            id: id.to_owned(),
            name: name.to_owned(),
            state: "Running".to_owned(),
            macs: Vec::new(),
            here: false,
            max_data_disks: 64,
            has_snapshots: false,
            has_backups: false,
            removed: false,
        }
    }
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) zone: String,
    pub(crate) offering: String,
    pub(crate) vms: BTreeMap<String, Vm>,
    pub(crate) volumes: BTreeMap<String, Volume>,
}

/// The place of the CD-ROM.
const CDROM: u32 = 3;

impl World {
    /// The volumes of a VM, root and data.
    pub(crate) fn of_vm(&self, vm: &str) -> impl Iterator<Item = &Volume> {
        self.volumes.values().filter(move |volume| volume.vm.as_deref() == Some(vm))
    }

    /// Whether the volume may be attached; the place it gets.
    pub(crate) fn attachable(&self, volume: &str, vm: &str, wish: Option<u32>) -> Result<u32, Refusal> {
        let volume = self
            .present(volume)
            .ok_or_else(|| Refusal::invalid("Please specify a volume with the valid type: ROOT or DATADISK"))?;
        if volume.vm.is_some() {
            return no("Please specify a volume that is not attached to any VM.");
        }
        if !matches!(volume.state.as_str(), "Allocated" | "Ready" | "Uploaded") {
            return no("Volume state must be in Allocated, Ready or in Uploaded state");
        }
        let Some(vm) = self.vms.get(vm).filter(|vm| !vm.removed) else { return no("Please specify a valid User VM.") };
        in_a_good_state(vm)?;
        if wish == Some(0) {
            is_stopped_for_its_root(vm)?;
            if self.of_vm(&vm.id).any(|other| other.device_id == Some(0)) {
                return no("Vm already has root volume attached to it");
            }
        } else if self.of_vm(&vm.id).filter(|volume| volume.kind == Kind::Data).count() >= vm.max_data_disks {
            let most = vm.max_data_disks;
            let text = format!(
                "The specified VM already has the maximum number of data disks ({most}) attached. Please specify another VM."
            );
            return no(&text);
        }
        let (name, id) = (&vm.name, &vm.id);
        let copies = [(vm.has_snapshots, "VM snapshots"), (vm.has_backups, "any backups")];
        if let Some((_, what)) = copies.into_iter().find(|(has, _)| *has) {
            let text =
                format!("Unable to attach volume to VM {name}/{id}, please specify a VM that does not have {what}");
            return no(&text);
        }
        let taken = |place: u32| self.of_vm(id).any(|volume| volume.device_id == Some(place));
        match wish {
            Some(place) if taken(place) => no(&format!("deviceId {place} is used by vm {id}")),
            Some(place) => Ok(place),
            None => Ok((1..).find(|place| *place != CDROM && !taken(*place)).expect("places are many")),
        }
    }

    /// Whether the volume may be detached; the VM that has it.
    pub(crate) fn detachable(&self, volume: &str) -> Result<String, Refusal> {
        let Some(found) = self.present(volume) else { return no(&format!("Unable to find volume with ID: {volume}")) };
        let Some(vm) = found.vm.as_ref().and_then(|vm| self.vms.get(vm)) else {
            return no("The specified volume is not attached to a VM.");
        };
        in_a_good_state(vm)?;
        if found.kind == Kind::Root {
            is_stopped_for_its_root(vm)?;
        }
        if vm.has_snapshots {
            return no("Unable to detach volume, please specify a VM that does not have VM snapshots");
        }
        if vm.has_backups {
            let text = "Unable to detach volume, cannot detach volume from a VM that has backups. First remove the VM from the \
                        backup offering or set the global configuration 'backup.enable.attach.detach.of.volumes' to true.";
            return no(text);
        }
        Ok(vm.id.clone())
    }

    /// Whether the volume may be deleted.
    pub(crate) fn deletable(&self, volume: &str) -> Result<(), Refusal> {
        let Some(found) = self.present(volume) else { return no(&format!("Unable to find volume with ID: {volume}")) };
        if found.vm.is_some() {
            return no("Please specify a volume that is not attached to any VM.");
        }
        if found.delete_protection {
            let (id, name) = (&found.id, &found.name);
            return no(&format!(
                "Volume [id = {id}, name = {name}] has delete protection enabled and cannot be deleted."
            ));
        }
        if found.snapshot {
            return no("There are snapshots creating on it, Unable to delete the volume");
        }
        Ok(())
    }

    pub(crate) fn present(&self, volume: &str) -> Option<&Volume> {
        self.volumes.get(volume).filter(|volume| !volume.removed)
    }
}

fn in_a_good_state(vm: &Vm) -> Result<(), Refusal> {
    match vm.state.as_str() {
        "Running" | "Stopped" => Ok(()),
        _ => no("Please specify a VM that is either running or stopped."),
    }
}

fn is_stopped_for_its_root(vm: &Vm) -> Result<(), Refusal> {
    match vm.state.as_str() {
        "Stopped" => Ok(()),
        _ => no("Root volume detach can happen only when vm is in states: Stopped or Destroyed"),
    }
}

fn no<T>(text: &str) -> Result<T, Refusal> {
    Err(Refusal::invalid(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world() -> World {
        let vm = Vm { max_data_disks: 4, ..Vm::running("vm", "appliance") };
        let mut world = World { vms: [("vm".to_owned(), vm)].into(), ..World::default() };
        for id in ["a", "b", "c", "d", "e"] {
            world.volumes.insert(id.to_owned(), Volume::ready(id, id, 1));
        }
        world
    }

    fn attach(world: &mut World, id: &str) -> Option<u32> {
        let place = world.attachable(id, "vm", None).ok()?;
        let volume = world.volumes.get_mut(id)?;
        (volume.vm, volume.device_id) = (Some("vm".into()), Some(place));
        Some(place)
    }

    #[test]
    fn places_are_given_from_one_on_without_that_of_the_cd_rom_and_no_more_than_there_are() {
        let mut world = world();
        let places = ["a", "b", "c", "d", "e"].map(|id| attach(&mut world, id));
        assert_eq!(places, [Some(1), Some(2), Some(4), Some(5), None]);
    }

    #[test]
    fn a_refusal_is_in_the_servers_words() {
        let mut world = world();
        let no = |world: &World, id: &str| world.attachable(id, "vm", None).map_err(|no| no.text);
        attach(&mut world, "a");
        assert_eq!(no(&world, "a"), Err("Please specify a volume that is not attached to any VM.".into()));
        world.volumes.get_mut("b").expect("it is there").state = "Migrating".into();
        assert_eq!(no(&world, "b"), Err("Volume state must be in Allocated, Ready or in Uploaded state".into()));
        world.vms.get_mut("vm").expect("it is there").state = "Migrating".into();
        assert_eq!(no(&world, "c"), Err("Please specify a VM that is either running or stopped.".into()));
        assert_eq!(world.deletable("a").map_err(|no| no.http), Err(431));
        assert_eq!(world.deletable("c"), Ok(()));
    }
}
