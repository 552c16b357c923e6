//! What each command does. A job's command only begins the job: what is refused there and then is an unknown id, a missing
//! parameter, or a job id that was used before.

use crate::answer::Refusal;
use crate::cloud::{Inner, State};
use crate::jobs::{self, Work};
use crate::request::Request;
use crate::shapes;
use crate::world::{Age, Volume};
use serde_json::{Value, json};
use std::sync::Arc;

/// A result, and the job that was begun.
pub(crate) type Done = (Value, Option<String>);

/// A command that the server knows.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) name: &'static str,
    /// It is no mere question.
    pub(crate) changes: bool,
    run: fn(&Arc<Inner>, &mut State, &Request) -> Result<Done, Refusal>,
}

const COMMANDS: [Command; 12] = [
    Command { name: "listZones", changes: false, run: list_zones },
    Command { name: "listVolumes", changes: false, run: list_volumes },
    Command { name: "listVirtualMachines", changes: false, run: list_vms },
    Command { name: "listAsyncJobs", changes: false, run: list_jobs },
    Command { name: "queryAsyncJobResult", changes: false, run: query_job },
    Command { name: "createVolume", changes: true, run: create },
    Command { name: "attachVolume", changes: true, run: attach },
    Command { name: "detachVolume", changes: true, run: detach },
    Command { name: "deleteVolume", changes: true, run: delete },
    Command { name: "startVirtualMachine", changes: true, run: start_vm },
    Command { name: "stopVirtualMachine", changes: true, run: stop_vm },
    Command { name: "destroyVirtualMachine", changes: true, run: destroy_vm },
];

/// The command of this very name.
pub(crate) fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name)
}

impl Command {
    /// Carries it out.
    pub(crate) fn carry_out(&self, inner: &Arc<Inner>, state: &mut State, request: &Request) -> Result<Done, Refusal> {
        (self.run)(inner, state, request)
    }
}

fn list_zones(_: &Arc<Inner>, state: &mut State, _: &Request) -> Result<Done, Refusal> {
    let zone = json!({
        "id": state.world.zone, "name": "zone", "networktype": "Advanced", "allocationstate": "Enabled",
        "localstorageenabled": true,
    });
    Ok((shapes::list("zone", vec![zone]), None))
}

fn list_volumes(_: &Arc<Inner>, state: &mut State, request: &Request) -> Result<Done, Refusal> {
    let id = known(request, "id", |id| state.world.volumes.contains_key(id))?;
    let vm = known(request, "virtualmachineid", |id| state.world.vms.contains_key(id))?;
    let ids: Option<Vec<&str>> = request.get("ids").map(|ids| ids.split(',').collect());
    let is = |volume: &&Volume| {
        !volume.removed
            && id.as_ref().is_none_or(|id| *id == volume.id)
            && ids.as_ref().is_none_or(|ids| ids.contains(&volume.id.as_str()))
            && vm.as_ref().is_none_or(|vm| volume.vm.as_ref() == Some(vm))
            && request.get("name").is_none_or(|name| name == volume.name)
            && request.get("state").is_none_or(|state| state.eq_ignore_ascii_case(&volume.state))
            && request.get("zoneid").is_none_or(|zone| zone == state.world.zone)
    };
    let all = state.world.volumes.values().filter(is).map(|volume| shapes::volume(&state.world, volume)).collect();
    Ok((shapes::list("volume", all), None))
}

fn list_vms(_: &Arc<Inner>, state: &mut State, request: &Request) -> Result<Done, Refusal> {
    let id = known(request, "id", |id| state.world.vms.contains_key(id))?;
    let wanted = state.world.vms.values().filter(|vm| !vm.removed && id.as_ref().is_none_or(|id| *id == vm.id));
    let wanted = wanted.filter(|vm| request.get("name").is_none_or(|name| name == vm.name));
    Ok((shapes::list("virtualmachine", wanted.map(|vm| shapes::vm(&state.world, vm)).collect()), None))
}

fn list_jobs(_: &Arc<Inner>, state: &mut State, request: &Request) -> Result<Done, Refusal> {
    let wish = [request.get("resourcetype"), request.get("resourceid")];
    let of = match wish {
        [Some(kind), Some(id)] if state.age == Age::New => Some((kind, id)),
        [Some(_), None] | [None, Some(_)] if state.age == Age::New => {
            return Err(Refusal::invalid("Both resourcetype and resourceid have to be given, or none of them"));
        }
        _ => None,
    };
    let is = |job: &&jobs::Job| {
        job.known
            && of.is_none_or(|(kind, id)| {
                job.instance.as_ref().is_some_and(|(its, at)| its.eq_ignore_ascii_case(kind) && at == id)
            })
    };
    Ok((shapes::list("asyncjobs", state.jobs.iter().filter(is).map(shapes::job).collect()), None))
}

fn query_job(_: &Arc<Inner>, state: &mut State, request: &Request) -> Result<Done, Refusal> {
    let id = needed(request, "jobid")?;
    match state.jobs.iter().find(|job| job.known && job.id == id) {
        Some(job) => Ok((shapes::job(job), None)),
        None => Err(unknown(request, "jobid", id)),
    }
}

/// The volume is made before the job id is looked at.
fn create(inner: &Arc<Inner>, state: &mut State, request: &Request) -> Result<Done, Refusal> {
    let name = needed(request, "name")?;
    if needed(request, "zoneid")? != state.world.zone {
        return Err(unknown(request, "zoneid", request.get("zoneid").unwrap_or_default()));
    }
    if needed(request, "diskofferingid")? != state.world.offering {
        return Err(unknown(request, "diskofferingid", request.get("diskofferingid").unwrap_or_default()));
    }
    let gib =
        request.get("size").and_then(|size| size.parse::<u64>().ok()).filter(|size| (1..=1024 * 1024).contains(size));
    let gib = gib.ok_or_else(|| Refusal::invalid("Please specify a valid volume size"))?;
    let id = uuid::Uuid::new_v4().to_string();
    let volume = Volume { state: "Allocated".to_owned(), ..Volume::ready(&id, name, gib << 30) };
    state.world.volumes.insert(id.clone(), volume);
    let job = jobs::begin(inner, state, request, Work::Create { volume: id.clone() })?;
    Ok((json!({ "id": id, "jobid": job }), Some(job)))
}

fn attach(inner: &Arc<Inner>, state: &mut State, request: &Request) -> Result<Done, Refusal> {
    let volume = needed_known(request, "id", |id| state.world.volumes.contains_key(id))?;
    let vm = needed_known(request, "virtualmachineid", |id| state.world.vms.contains_key(id))?;
    let device = number(request, "deviceid")?;
    begun(jobs::begin(inner, state, request, Work::Attach { volume, vm, device }))
}

fn detach(inner: &Arc<Inner>, state: &mut State, request: &Request) -> Result<Done, Refusal> {
    let volume = known(request, "id", |id| state.world.volumes.contains_key(id))?;
    let vm = known(request, "virtualmachineid", |id| state.world.vms.contains_key(id))?;
    let device = number(request, "deviceid")?;
    begun(jobs::begin(inner, state, request, Work::Detach { volume, vm, device }))
}

fn delete(_: &Arc<Inner>, state: &mut State, request: &Request) -> Result<Done, Refusal> {
    let id = needed_known(request, "id", |id| state.world.volumes.contains_key(id))?;
    state.world.deletable(&id)?;
    let volume = state.world.volumes.get_mut(&id).expect("it is deletable");
    (volume.removed, volume.state) = (true, "Expunged".to_owned());
    // Servers of long ago said it as a text.
    let success = if state.age == Age::Old { json!("true") } else { json!(true) };
    Ok((json!({ "success": success }), None))
}

fn start_vm(inner: &Arc<Inner>, state: &mut State, request: &Request) -> Result<Done, Refusal> {
    let vm = needed_known(request, "id", |id| state.world.vms.contains_key(id))?;
    begun(jobs::begin(inner, state, request, Work::Start { vm }))
}

fn stop_vm(inner: &Arc<Inner>, state: &mut State, request: &Request) -> Result<Done, Refusal> {
    let vm = needed_known(request, "id", |id| state.world.vms.contains_key(id))?;
    begun(jobs::begin(inner, state, request, Work::Stop { vm }))
}

fn destroy_vm(inner: &Arc<Inner>, state: &mut State, request: &Request) -> Result<Done, Refusal> {
    let vm = needed_known(request, "id", |id| state.world.vms.contains_key(id))?;
    let expunge = request.get("expunge").is_some_and(|wish| wish.eq_ignore_ascii_case("true"));
    begun(jobs::begin(inner, state, request, Work::Destroy { vm, expunge }))
}

fn begun(job: Result<String, Refusal>) -> Result<Done, Refusal> {
    job.map(|job| (json!({ "jobid": job }), Some(job)))
}

fn needed<'a>(request: &'a Request, name: &str) -> Result<&'a str, Refusal> {
    let command = request.get("command").unwrap_or_default().to_lowercase();
    let text = format!("Unable to execute API command {command} due to missing parameter {name}");
    request.get(name).filter(|value| !value.is_empty()).ok_or_else(|| Refusal::unreadable(&text))
}

fn known(request: &Request, name: &str, is_known: impl Fn(&str) -> bool) -> Result<Option<String>, Refusal> {
    match request.get(name) {
        None => Ok(None),
        Some(id) if is_known(id) => Ok(Some(id.to_owned())),
        Some(id) => Err(unknown(request, name, id)),
    }
}

fn needed_known(request: &Request, name: &str, is_known: impl Fn(&str) -> bool) -> Result<String, Refusal> {
    needed(request, name)?;
    Ok(known(request, name, is_known)?.expect("it was needed"))
}

fn number(request: &Request, name: &str) -> Result<Option<u32>, Refusal> {
    let Some(text) = request.get(name) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| unknown(request, name, text))
}

fn unknown(request: &Request, name: &str, value: &str) -> Refusal {
    let command = request.get("command").unwrap_or_default().to_lowercase();
    Refusal::unreadable(&format!(
        "Unable to execute API command {command} due to invalid value. Invalid parameter {name} value={value} due to \
         incorrect long value format, or entity does not exist or due to incorrect parameter annotation for the field in \
         api cmd class."
    ))
}
