//! CloudStack.

use futures_util::FutureExt;

use crate::cloud::{
    Answer, CallError, Cloud, CloudVm, CloudVolume, JobStatus, NewVolume, RefusalKind, Started, VmState, VolumeState,
};
use crate::identity::{JobId, VmId, VolumeId};

use super::{Double, Truth, World, own, refusal, volume};

impl Cloud for Double {
    fn volume(&self, id: VolumeId) -> Answer<'_, Option<CloudVolume>> {
        self.0.call("cloud.volume", move |state| Ok(state.volumes.get(&id).cloned())).boxed()
    }

    fn volume_named<'a>(&'a self, name: &'a str) -> Answer<'a, Option<CloudVolume>> {
        let named = move |state: &mut Truth| Ok(state.volumes.values().find(|volume| volume.name == name).cloned());
        self.0.call("cloud.volume-named", named).boxed()
    }

    fn volumes_of<'a>(&'a self, vm: &'a VmId) -> Answer<'a, Vec<CloudVolume>> {
        let of = move |state: &mut Truth| Ok(state.volumes.values().filter(|it| it.vm == Some(*vm)).cloned().collect());
        self.0.call("cloud.volumes-of", of).boxed()
    }

    fn vm<'a>(&'a self, id: &'a VmId) -> Answer<'a, Option<CloudVm>> {
        self.0.call("cloud.vm", move |state| Ok(state.vms.get(id).cloned())).boxed()
    }

    fn create<'a>(&'a self, job: JobId, what: &'a NewVolume) -> Answer<'a, Started> {
        let made = move |state: &mut Truth| {
            state.last_volume += 1;
            let new = CloudVolume {
                name: what.name.clone(),
                size_bytes: what.gib << 30,
                state: VolumeState::Allocated,
                ..volume(state.last_volume, None)
            };
            let id = new.id;
            // Made before it is refused, as CloudStack does.
            state.volumes.insert(id, new);
            let fails = self.0.trouble().jobs_fail.is_some();
            if fails {
                state.volumes.remove(&id);
            }
            self.0.begin(state, job, format!("create {}", what.gib), Some(id), |_| {}, |_| Ok(()))
        };
        self.0.call("cloud.create", made).boxed()
    }

    fn attach<'a>(&'a self, job: JobId, id: VolumeId, vm: &'a VmId, device_id: Option<u32>) -> Answer<'a, Started> {
        let vm = *vm;
        let attached = move |state: &mut Truth| {
            if self.0.trouble().no_such_vm {
                let words = "Unable to find virtual machine";
                return Err(CallError::Refused(refusal(RefusalKind::Gone, words)));
            }
            let guest = move |world: &World| {
                if vm == own() {
                    world.plug(id);
                }
            };
            let end = move |state: &mut Truth| match state.volumes.get_mut(&id) {
                Some(volume) if volume.vm.is_some() => Err("This volume is already attached to a VM."),
                Some(volume) => {
                    volume.vm = Some(vm);
                    volume.device_id = device_id.or(Some(4));
                    Ok(())
                }
                None => Err("Unable to find volume"),
            };
            self.0.begin(state, job, format!("attach {id} {vm} {device_id:?}"), Some(id), guest, end)
        };
        self.0.call("cloud.attach", attached).boxed()
    }

    fn detach(&self, job: JobId, id: VolumeId) -> Answer<'_, Started> {
        let detached = move |state: &mut Truth| {
            let had = state.volumes.get(&id).and_then(|volume| volume.vm);
            let guest = move |world: &World| {
                if had == Some(own()) {
                    world.unplug(id);
                }
            };
            let end = move |state: &mut Truth| match state.volumes.get_mut(&id) {
                Some(volume) if volume.vm.is_some() => {
                    (volume.vm, volume.device_id) = (None, None);
                    Ok(())
                }
                _ => Err("The specified volume is not attached to a VM."),
            };
            self.0.begin(state, job, format!("detach {id}"), Some(id), guest, end)
        };
        self.0.call("cloud.detach", detached).boxed()
    }

    fn delete(&self, id: VolumeId) -> Answer<'_, ()> {
        let deleted = move |state: &mut Truth| {
            state.log.push(format!("delete {id}"));
            match state.volumes.remove(&id) {
                Some(volume) if volume.vm.is_some() => {
                    state.volumes.insert(id, volume);
                    let words = "Please specify a volume that is not attached to any VM.";
                    Err(CallError::Refused(refusal(RefusalKind::Conflict, words)))
                }
                Some(_) => Ok(()),
                None => Err(CallError::Refused(refusal(RefusalKind::Gone, "Unable to find volume"))),
            }
        };
        self.0.call("cloud.delete", deleted).boxed()
    }

    fn job(&self, job: JobId) -> Answer<'_, Option<JobStatus>> {
        self.0.call("cloud.job", move |state| Ok(state.jobs.get(&job).cloned())).boxed()
    }

    fn stop_vm<'a>(&'a self, job: JobId, vm: &'a VmId, forced: bool) -> Answer<'a, Started> {
        let vm = *vm;
        let stopped = move |state: &mut Truth| {
            let end = move |state: &mut Truth| {
                state.vms.get_mut(&vm).ok_or("no such VM")?.state = VmState::Stopped;
                Ok(())
            };
            self.0.begin(state, job, format!("stop {vm} {forced}"), None, |_| {}, end)
        };
        self.0.call("cloud.stop-vm", stopped).boxed()
    }

    fn destroy_vm<'a>(&'a self, job: JobId, vm: &'a VmId) -> Answer<'a, Started> {
        let vm = *vm;
        let destroyed = move |state: &mut Truth| {
            let end = move |state: &mut Truth| {
                state.vms.remove(&vm);
                Ok(())
            };
            self.0.begin(state, job, format!("destroy {vm}"), None, |_| {}, end)
        };
        self.0.call("cloud.destroy-vm", destroyed).boxed()
    }
}
