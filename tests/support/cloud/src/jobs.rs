//! Jobs: what was begun by a call and is done later. One at a time of a VM, as CloudStack has it.

use crate::answer::Refusal;
use crate::cloud::{Inner, State};
use crate::request::Request;
use crate::script::{Gate, JobFault};
use crate::shapes;
use crate::world::{Age, Kind};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Arc;
use std::thread;

const SUCCEEDED: u8 = 1;
const FAILED: u8 = 2;
const CANCELLED: u8 = 3;

/// A job, as `queryAsyncJobResult` shows it and a little more.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its id.
    pub id: String,
    /// The command that has begun it.
    pub command: String,
    /// 0 in progress, 1 succeeded, 2 failed, 3 cancelled.
    pub status: u8,
    /// It is remembered.
    pub known: bool,
    /// It was really done, whatever it says.
    pub done: bool,
    /// Nothing of it is to come.
    pub over: bool,
    /// When it was begun.
    pub created: Timestamp,
    /// When it has said how it ended.
    pub completed: Option<Timestamp>,
    pub(crate) code: u16,
    pub(crate) result: Option<Value>,
    pub(crate) instance: Option<(&'static str, String)>,
}

/// What a job is to do.
#[derive(Debug, Clone)]
pub(crate) enum Work {
    Create { volume: String },
    Attach { volume: String, vm: String, device: Option<u32> },
    Detach { volume: Option<String>, vm: Option<String>, device: Option<u32> },
    Start { vm: String },
    Stop { vm: String },
    Destroy { vm: String, expunge: bool },
}

/// Begins a job; its id.
pub(crate) fn begin(inner: &Arc<Inner>, state: &mut State, request: &Request, work: Work) -> Result<String, Refusal> {
    let wish = request.get("customjobid").filter(|_| state.age == Age::New);
    if let Some(wish) = wish {
        if uuid::Uuid::try_parse(wish).is_err() || wish != wish.to_lowercase() || wish.len() != 36 {
            return Err(Refusal::invalid(&format!("UUID: {wish} doesn't follow the UUID format")));
        }
        if state.jobs.iter().any(|job| job.id == wish) {
            let text = format!("UUID: {wish} already exists so can't create/update with custom id");
            return Err(Refusal::invalid(&text));
        }
    }
    let id = wish.map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned);
    let command = request.get("command").unwrap_or_default().to_owned();
    let fault = state.script.of_job(&command);
    let instance = match &work {
        Work::Create { volume } | Work::Attach { volume, .. } => Some(("Volume", volume.clone())),
        Work::Detach { volume, .. } => volume.clone().map(|volume| ("Volume", volume)),
        Work::Start { vm } | Work::Stop { vm } | Work::Destroy { vm, .. } => Some(("VirtualMachine", vm.clone())),
    };
    state.jobs.push(Job {
        id: id.clone(),
        command,
        status: 0,
        known: true,
        done: false,
        over: false,
        created: Timestamp::now(),
        completed: None,
        code: 0,
        result: None,
        instance,
    });
    let takes = state.job_takes;
    let (inner, its) = (Arc::clone(inner), id.clone());
    thread::spawn(move || {
        thread::sleep(takes);
        run(&inner, &its, &work, fault);
        inner.change(|state| state.job(&its).over = true);
    });
    Ok(id)
}

fn run(inner: &Inner, id: &str, work: &Work, fault: Option<JobFault>) {
    match &fault {
        Some(JobFault::Takes(time)) => thread::sleep(*time),
        Some(JobFault::Held(gate)) => gate.pass(),
        Some(JobFault::Fails(refusal)) => return says(inner, id, Says::Failed(refusal)),
        Some(JobFault::Cancelled) => return says(inner, id, Says::Cancelled),
        Some(JobFault::Straggles(gate)) => {
            says(inner, id, Says::Cancelled);
            gate.pass();
        }
        _ => {}
    }
    let result = work.carry_out(inner, id, fault.as_ref());
    if result.is_ok() {
        inner.change(|state| state.job(id).done = true);
    }
    if let Some(JobFault::SaysLater(time)) = &fault {
        thread::sleep(*time);
    }
    match (fault, result) {
        (Some(JobFault::FailsAfter(refusal)), Ok(_)) => says(inner, id, Says::Failed(&refusal)),
        (Some(JobFault::CancelledAfter), Ok(_)) => says(inner, id, Says::Cancelled),
        (Some(JobFault::Straggles(_)), _) => {}
        (Some(JobFault::Forgotten), _) => inner.change(|state| state.job(id).known = false),
        (_, Ok(result)) => says(inner, id, Says::Succeeded(result)),
        (_, Err(refusal)) => says(inner, id, Says::Failed(&refusal)),
    }
}

enum Says<'a> {
    Succeeded(Value),
    Failed(&'a Refusal),
    Cancelled,
}

fn says(inner: &Inner, id: &str, what: Says<'_>) {
    inner.change(|state| {
        let age = state.age;
        let job = state.job(id);
        // What was said once stays so: the disk may come later than the word.
        if job.completed.is_some() {
            return;
        }
        job.completed = Some(Timestamp::now());
        (job.status, job.code, job.result) = match what {
            Says::Succeeded(result) => (SUCCEEDED, 0, Some(result)),
            // Who is cancelled has no result at all.
            Says::Cancelled => (CANCELLED, 0, None),
            Says::Failed(refusal) => {
                let code = if age == Age::Old { 530 } else { refusal.http };
                (FAILED, code, Some(json!({ "uuidList": [], "errorcode": code, "errortext": refusal.text })))
            }
        };
    });
}

impl Work {
    fn carry_out(&self, inner: &Inner, id: &str, fault: Option<&JobFault>) -> Result<Value, Refusal> {
        match self {
            Work::Create { volume } => Ok(inner.volume_shown(volume)),
            Work::Attach { volume, vm, device } => {
                let _turn = inner.turn(vm);
                let later = match fault {
                    Some(JobFault::DiskLater(gate)) => Some(gate),
                    _ => None,
                };
                attach(inner, volume, vm, *device, later.map(|gate| (id, gate)))
            }
            Work::Detach { volume, vm, device } => {
                let volume = named(inner, volume.as_deref(), vm.as_deref(), *device)?;
                let vm = inner.state().world.detachable(&volume)?;
                let _turn = inner.turn(&vm);
                detach(inner, &volume, !matches!(fault, Some(JobFault::NotLetGo)))
            }
            Work::Start { vm } => {
                let _turn = inner.turn(vm);
                inner.switch(vm, "Running")
            }
            Work::Stop { vm } => {
                let _turn = inner.turn(vm);
                inner.switch(vm, "Stopped")
            }
            Work::Destroy { vm, expunge } => {
                let _turn = inner.turn(vm);
                let shown = inner.switch(vm, if *expunge { "Expunging" } else { "Destroyed" })?;
                inner.change(|state| {
                    state.world.vms.get_mut(vm).into_iter().for_each(|vm| vm.removed = *expunge);
                    let of_it =
                        state.world.volumes.values_mut().filter(|volume| volume.vm.as_deref() == Some(vm.as_str()));
                    of_it.for_each(|volume| match volume.kind {
                        Kind::Root => volume.removed = *expunge,
                        Kind::Data if *expunge => (volume.vm, volume.device_id) = (None, None),
                        Kind::Data => {}
                    });
                });
                Ok(shown)
            }
        }
    }
}

/// By its id or by its place, and not by both.
fn named(inner: &Inner, volume: Option<&str>, vm: Option<&str>, device: Option<u32>) -> Result<String, Refusal> {
    match (volume, vm, device) {
        (Some(volume), None, None) => Ok(volume.to_owned()),
        (None, Some(vm), Some(device)) => {
            let state = inner.state();
            let found = state.world.of_vm(vm).find(|volume| volume.device_id == Some(device));
            // The real one looks into an empty list.
            found.map(|volume| volume.id.clone()).ok_or_else(|| Refusal::runtime("Index 0 out of bounds for length 0"))
        }
        _ => Err(Refusal::invalid("Please provide either a volume id, or a tuple(device id, instance id)")),
    }
}

/// Without a job.
pub(crate) fn attach_now(inner: &Inner, volume: &str, vm: &str) -> Result<Value, Refusal> {
    let _turn = inner.turn(vm);
    attach(inner, volume, vm, None, None)
}

/// Without a job.
pub(crate) fn detach_now(inner: &Inner, volume: &str) -> Result<Value, Refusal> {
    let vm = inner.state().world.detachable(volume)?;
    let _turn = inner.turn(&vm);
    detach(inner, volume, true)
}

/// `later`: the job says that it is done, and the disk comes when the gate opens.
fn attach(
    inner: &Inner,
    volume: &str,
    vm: &str,
    device: Option<u32>,
    later: Option<(&str, &Gate)>,
) -> Result<Value, Refusal> {
    let (place, unit) = inner.change(|state| {
        let place = state.world.attachable(volume, vm, device)?;
        let is_on = state.world.vms.get(vm).is_some_and(|vm| vm.here && vm.state == "Running");
        let volume = state.world.volumes.get_mut(volume).expect("it is attachable");
        volume.state = "Attaching".to_owned();
        Ok((place, is_on.then(|| volume.unit())))
    })?;
    let recorded = |plugged: bool| {
        inner.change(|state| {
            let volume = state.world.volumes.get_mut(volume).expect("volumes stay known");
            (volume.vm, volume.device_id) = (Some(vm.to_owned()), Some(place));
            (volume.kind, volume.plugged) = (if place == 0 { Kind::Root } else { Kind::Data }, plugged);
            volume.state = "Ready".to_owned();
        });
        inner.volume_shown(volume)
    };
    if let Some((id, gate)) = later {
        says(inner, id, Says::Succeeded(recorded(false)));
        gate.pass();
    }
    if let Some(unit) = &unit
        && let Err(error) = inner.plug().and_then(|plug| plug.plug(unit))
    {
        inner.change(|state| {
            state.world.volumes.get_mut(volume).expect("volumes stay known").state = "Ready".to_owned()
        });
        return Err(Refusal::runtime(&format!("Failed to attach volume {volume} to VM {vm}; {error:#}")));
    }
    Ok(recorded(unit.is_some()))
}

fn detach(inner: &Inner, volume: &str, lets_go: bool) -> Result<Value, Refusal> {
    let (vm, plugged) = {
        let state = inner.state();
        (state.world.detachable(volume)?, state.world.volumes.get(volume).is_some_and(|volume| volume.plugged))
    };
    if plugged {
        let gone = match lets_go {
            true => inner.plug().and_then(|plug| plug.unplug(volume)).map_err(|error| format!("{error:#}")),
            false => {
                Err("Could not detach volume after sending the command and waiting for [10000] milliseconds. Either \
                          the VM does not support this operation, or the guest did not let go of the disk."
                    .to_owned())
            }
        };
        if let Err(why) = gone {
            return Err(Refusal::runtime(&format!("Failed to detach volume {volume} from VM {vm}; {why}")));
        }
    }
    inner.change(|state| {
        let volume = state.world.volumes.get_mut(volume).expect("volumes stay known");
        (volume.vm, volume.device_id, volume.plugged, volume.kind) = (None, None, false, Kind::Data);
    });
    Ok(inner.volume_shown(volume))
}

impl Inner {
    fn volume_shown(&self, volume: &str) -> Value {
        let state = self.state();
        let shown = state.world.volumes.get(volume).map(|volume| shapes::volume(&state.world, volume));
        json!({ "volume": shown })
    }

    /// Has a VM in another state; its disks go with its power and come with it.
    pub(crate) fn switch(&self, vm: &str, to: &str) -> Result<Value, Refusal> {
        let on = to == "Running";
        let disks: Vec<_> = {
            let state = self.state();
            let here = state.world.vms.get(vm).is_some_and(|vm| vm.here);
            let of_it = state.world.of_vm(vm).filter(|volume| here && volume.plugged != on);
            of_it.map(crate::world::Volume::unit).collect()
        };
        for unit in &disks {
            let done = self.plug().and_then(|plug| if on { plug.plug(unit) } else { plug.unplug(&unit.volume) });
            done.map_err(|error| Refusal::runtime(&format!("{error:#}")))?;
            self.change(|state| state.world.volumes.get_mut(&unit.volume).expect("volumes stay known").plugged = on);
        }
        self.change(|state| state.world.vms.get_mut(vm).into_iter().for_each(|vm| vm.state = to.to_owned()));
        let state = self.state();
        Ok(json!({ "virtualmachine": state.world.vms.get(vm).map(|vm| shapes::vm(&state.world, vm)) }))
    }
}
