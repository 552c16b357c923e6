//! Where volumes are, in the predecessor's words. A volume has a device as long as its disk is here and proven, or
//! another VM has it by an operation. Callers take any `device_path` for "attached": a volume that waits, is being
//! attached, has expired, is lost or is refused has none.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::super::error::ApiError;
use super::super::pages;
use super::super::volumes::node;
use super::super::{Context, Ctx};
use super::{AskedVolume, PathText};
use crate::device::evidence::Evidence;
use crate::engine::world::{Shown, Volume, World};
use crate::identity::VolumeId;
use crate::operation::Placeholder;
use crate::reason::Code;
use crate::volume::State as VolumeState;
use crate::wire::ErrorBody;

/// The device of a volume.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PredecessorDevice)]
pub(super) struct Mapping {
    id: &'static str,
    vm_context_id: Option<&'static str>,
    volume_uuid: VolumeId,
    /// The same; the predecessor's own client reads this name.
    volume_id: VolumeId,
    volume_id_numeric: Option<i64>,
    vm_id: String,
    /// `oma`: this host has the volume. `failover`: another VM has it.
    operation_mode: &'static str,
    /// 0: the VM's root disk.
    cloudstack_device_id: Option<u32>,
    requires_device_correlation: bool,
    /// The by-id path of the disk, or `remote-vm-<vm>-<volume>`.
    device_path: String,
    cloudstack_state: &'static str,
    /// `detected`, or `n/a` of another VM.
    linux_state: &'static str,
    size: u64,
    #[schema(value_type = String, format = DateTime)]
    last_sync: Timestamp,
    snapshot_status: &'static str,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

/// A volume that a VM has.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PredecessorVolume)]
pub(super) struct VolumeOfVm {
    volume_id: VolumeId,
    vm_id: String,
    device_path: String,
    state: &'static str,
    size: u64,
    cloudstack_data: Option<&'static str>,
}

impl From<Mapping> for VolumeOfVm {
    fn from(mapping: Mapping) -> Self {
        let Mapping { volume_id, vm_id, device_path, size, .. } = mapping;
        Self { volume_id, vm_id, device_path, state: "attached", size, cloudstack_data: None }
    }
}

/// Returns the disk of a volume of this host, if it is here and proven. While the volume is being detached it still is.
fn device(state: VolumeState, mapping: Option<&Evidence>) -> Option<&Evidence> {
    match state {
        VolumeState::Matched | VolumeState::Exporting | VolumeState::Ready | VolumeState::Detaching => mapping,
        VolumeState::Attaching
        | VolumeState::Waiting
        | VolumeState::Lost
        | VolumeState::Refused
        | VolumeState::Expired => None,
    }
}

fn here(volume: &Shown) -> Option<Mapping> {
    let disk = device(volume.state, volume.mapping.as_ref())?;
    Some(Mapping {
        id: "",
        vm_context_id: None,
        volume_uuid: volume.intent.volume,
        volume_id: volume.intent.volume,
        volume_id_numeric: None,
        vm_id: volume.intent.vm_id.clone(),
        operation_mode: "oma",
        cloudstack_device_id: None,
        requires_device_correlation: true,
        device_path: disk.link.clone(),
        cloudstack_state: "attached",
        linux_state: "detected",
        size: disk.size_bytes,
        last_sync: disk.at,
        snapshot_status: "",
        created_at: volume.intent.created_at,
        updated_at: volume.since,
    })
}

fn elsewhere(placeholder: &Placeholder) -> Mapping {
    Mapping {
        id: "",
        vm_context_id: None,
        volume_uuid: placeholder.volume,
        volume_id: placeholder.volume,
        volume_id_numeric: None,
        vm_id: placeholder.vm.to_string(),
        operation_mode: "failover",
        cloudstack_device_id: placeholder.root.then_some(0),
        requires_device_correlation: false,
        device_path: placeholder.device_path(),
        cloudstack_state: "attached",
        linux_state: "n/a",
        size: 0,
        last_sync: placeholder.since,
        snapshot_status: "",
        created_at: placeholder.since,
        updated_at: placeholder.since,
    }
}

/// Returns the path and the mode of each of these volumes that is attached.
pub(super) async fn of_volumes(
    context: &Context,
    volumes: Vec<VolumeId>,
) -> Result<HashMap<VolumeId, (String, &'static str)>, ApiError> {
    let wanted = volumes.clone();
    let look = move |world: &World| {
        wanted.into_iter().filter_map(|id| world.volume(id).map(Volume::shown)).collect::<Vec<_>>()
    };
    let own = context.inner.engine.read(look).await?;
    let own = own.iter().filter_map(|volume| here(volume));
    let placeholder = |volume: VolumeId| context.inner.operations.placeholder(volume);
    let theirs = volumes.into_iter().filter_map(placeholder).map(|placeholder| elsewhere(&placeholder));
    let places = theirs.chain(own).map(|mapping| (mapping.volume_id, (mapping.device_path, mapping.operation_mode)));
    Ok(places.collect())
}

/// Shows the device of a volume, if it is attached.
#[utoipa::path(get, path = "/api/v1/volumes/{volume_id}/device", operation_id = "predecessorDevice", tag = "predecessor",
    params(("volume_id" = VolumeId, Path)), responses(
    (status = 200, body = Mapping),
    (status = 404, body = ErrorBody, description = "NO_DEVICE: it is not attached, or its disk is not served here; the text says which")))]
pub(super) async fn of_volume(
    State(context): Ctx,
    AskedVolume(volume): AskedVolume,
) -> Result<Json<Mapping>, ApiError> {
    let look = move |world: &World| world.volume(volume).map(Volume::shown);
    let shown = context.inner.engine.read(look).await?;
    let mapping = shown.as_deref().and_then(here);
    let mapping = mapping.or_else(|| context.inner.operations.placeholder(volume).as_ref().map(elsewhere));
    mapping.map(Json).ok_or_else(|| {
        let text = match shown {
            Some(shown) => format!("volume {volume} has no device: it is {} on this host", shown.state),
            None => format!("volume {volume} has no device: it is not attached to this host, nor by it to another VM"),
        };
        ApiError::of(Code::NoDevice, text)
    })
}

/// Shows the device that has this path, with the slashes written as `%2F`.
#[utoipa::path(get, path = "/api/v1/devices/{device_path}/volume", operation_id = "predecessorVolumeOfDevice", tag = "predecessor",
    params(("device_path" = String, Path, description = "A by-id path, the node that it leads to, or the text in place of a path, like `%2Fdev%2Fvdb`.")), responses(
    (status = 200, body = Mapping),
    (status = 404, body = ErrorBody, description = "NO_DEVICE: no volume has it")))]
pub(super) async fn of_device(State(context): Ctx, PathText(path): PathText) -> Result<Json<Mapping>, ApiError> {
    let wanted = format!("/{}", path.trim_start_matches('/'));
    let is_wanted = move |world: &World, volume: &Volume| {
        let shown = volume.shown();
        let mapping = here(&shown)?;
        let has_it = mapping.device_path == wanted || node(world, &shown).is_some_and(|node| node == wanted);
        has_it.then_some(mapping)
    };
    let own = pages::volumes(&context.inner.engine, is_wanted).await?.into_iter().next();
    let theirs = || {
        let all = context.inner.operations.placeholders();
        all.iter().find(|placeholder| placeholder.device_path() == path.trim_start_matches('/')).map(elsewhere)
    };
    own.or_else(theirs).map(Json).ok_or_else(|| {
        let shown: String = path.chars().take(255).collect();
        ApiError::of(Code::NoDevice, format!("no volume has the device {shown:?}"))
    })
}

/// Lists the volumes that a VM has, as far as attachd has attached or serves them.
#[utoipa::path(get, path = "/api/v1/vms/{vm_id}/volumes", operation_id = "predecessorVolumesOfVm", tag = "predecessor",
    params(("vm_id" = String, Path, description = "The VM's UUID; any other text has no volumes.")),
    responses((status = 200, body = Vec<VolumeOfVm>)))]
pub(super) async fn of_vm(State(context): Ctx, PathText(vm): PathText) -> Result<Response, ApiError> {
    let theirs = context.inner.operations.placeholders();
    let wanted = vm.clone();
    let pick =
        move |_: &World, volume: &Volume| volume.intent.vm_id.eq_ignore_ascii_case(&wanted).then(|| volume.shown());
    let make = move |own: Vec<Arc<Shown>>| {
        let theirs = theirs.iter().filter(|placeholder| placeholder.vm.to_string().eq_ignore_ascii_case(&vm));
        let own = own.iter().filter_map(|volume| here(volume));
        own.chain(theirs.map(elsewhere)).map(VolumeOfVm::from).collect::<Vec<_>>()
    };
    pages::list(&context.inner.engine, pick, make).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::facts::sample;

    #[test]
    fn only_a_volume_whose_disk_is_here_has_a_device() {
        let disk = sample::evidence();
        let have = VolumeState::ALL.into_iter().filter(|state| device(*state, Some(&disk)).is_some());
        let have: Vec<_> = have.map(VolumeState::as_str).collect();
        assert_eq!(have, ["matched", "exporting", "ready", "detaching"]);
        assert!(VolumeState::ALL.into_iter().all(|state| device(state, None).is_none()));
    }

    #[test]
    fn a_volume_of_another_vm_is_shown_as_the_predecessor_did() {
        let id = |n: u32| format!("{n:08x}-0000-4000-8000-000000000000");
        let (volume, vm) = (id(1).parse().unwrap(), id(2).parse().unwrap());
        let at = Timestamp::UNIX_EPOCH;
        let placeholder = Placeholder { volume, vm, root: true, operation: id(3).parse().unwrap(), since: at };
        let shown = serde_json::to_value(elsewhere(&placeholder)).unwrap();
        let at = at.to_string();
        let expected = serde_json::json!({
            "id": "", "vm_context_id": null, "volume_uuid": id(1), "volume_id": id(1), "volume_id_numeric": null,
            "vm_id": id(2), "operation_mode": "failover", "cloudstack_device_id": 0, "requires_device_correlation": false,
            "device_path": format!("remote-vm-{}-{}", id(2), id(1)), "cloudstack_state": "attached", "linux_state": "n/a",
            "size": 0, "last_sync": at, "snapshot_status": "", "created_at": at, "updated_at": at,
        });
        assert_eq!(shown, expected, "and what is null there is left out");
    }
}
