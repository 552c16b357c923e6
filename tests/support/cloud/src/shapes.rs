//! How things read in JSON.

use crate::jobs::Job;
use crate::world::{Kind, Vm, Volume, World};
use serde_json::{Value, json};

pub(crate) fn volume(world: &World, volume: &Volume) -> Value {
    let kind = match volume.kind {
        Kind::Root => "ROOT",
        Kind::Data => "DATADISK",
    };
    let mut shown = json!({
        "id": volume.id, "name": volume.name, "zoneid": world.zone, "zonename": "zone", "type": kind, "size": volume.size,
        "state": volume.state, "account": "admin", "domain": "ROOT", "diskofferingid": world.offering,
        "provisioningtype": "thin", "hypervisor": "KVM", "created": "2026-11-28T08:00:00+0000", "destroyed": false,
        "isextractable": true, "deleteprotection": volume.delete_protection, "path": volume.id, "tags": [],
    });
    if let Some(vm) = volume.vm.as_ref().and_then(|vm| world.vms.get(vm)) {
        shown["virtualmachineid"] = json!(vm.id);
        shown["vmname"] = json!(vm.name);
        shown["vmdisplayname"] = json!(vm.name);
        shown["vmstate"] = json!(vm.state);
        shown["deviceid"] = json!(volume.device_id);
        shown["attached"] = json!("2026-11-28T08:00:00+0000");
    }
    shown
}

pub(crate) fn vm(world: &World, vm: &Vm) -> Value {
    let card = |(number, mac): (usize, &String)| json!({ "id": format!("card-{number}"), "macaddress": mac, "isdefault": number == 0, "type": "Isolated" });
    json!({
        "id": vm.id, "name": vm.name, "displayname": vm.name, "state": vm.state, "zoneid": world.zone, "zonename": "zone",
        "account": "admin", "domain": "ROOT", "hypervisor": "KVM", "haenable": false,
        "nic": vm.macs.iter().enumerate().map(card).collect::<Vec<_>>(),
    })
}

/// A job; `whole` with its result, as `queryAsyncJobResult` shows it.
pub(crate) fn job(job: &Job) -> Value {
    let class = format!("{}{}Cmd", job.command[..1].to_uppercase(), &job.command[1..]);
    let mut shown = json!({
        "accountid": "3ec0a000-0000-4000-8000-000000000001", "userid": "3ec0a000-0000-4000-8000-000000000002",
        "cmd": format!("org.apache.cloudstack.api.command.admin.{class}ByAdmin"), "jobstatus": job.status,
        "jobprocstatus": 0, "jobresultcode": job.code, "created": job.created.strftime("%Y-%m-%dT%H:%M:%S%z").to_string(),
        "jobid": job.id,
    });
    if let Some((kind, id)) = &job.instance {
        shown["jobinstancetype"] = json!(kind);
        shown["jobinstanceid"] = json!(id);
    }
    if let Some(result) = &job.result {
        shown["jobresulttype"] = json!("object");
        shown["jobresult"] = result.clone();
    }
    if let Some(completed) = &job.completed {
        shown["completed"] = json!(completed.strftime("%Y-%m-%dT%H:%M:%S%z").to_string());
    }
    shown
}

/// A list: `{}` when there is nothing.
pub(crate) fn list(name: &str, all: Vec<Value>) -> Value {
    match all.is_empty() {
        true => json!({}),
        false => json!({ "count": all.len(), name: all }),
    }
}
