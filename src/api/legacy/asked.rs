//! What callers ask for, in the predecessor's words, and what that is. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::identity::{VmId, VolumeId};
use crate::operation::{Attach, CleanUp, Create, Detach, Kind, Place, Request, Size, Unusable, Written};
use crate::wire::whole_or_negative;

/// How long a detach waits for connected clients, in seconds.
const CLIENT_WAIT_SECONDS: u32 = 30;

/// The longest text that is kept of a request, in characters. No id and no name is longer.
const LONGEST_TEXT: usize = 255;

/// The most entries that are kept of `metadata`.
const MOST_METADATA: usize = 16;

/// A request, and how it was written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) request: Request,
    pub(super) written: Written,
}

/// A volume to make.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = PredecessorCreate)]
#[serde(default)]
pub(super) struct NewVolume {
    /// What people are to call it.
    name: Option<String>,
    /// The size in bytes. CloudStack makes whole GiB, never less than this.
    #[serde(deserialize_with = "whole_or_negative")]
    size: Option<i64>,
    /// CloudStack's disk offering.
    disk_offering_id: Option<String>,
    /// CloudStack's zone.
    zone_id: Option<String>,
    /// Kept with the operation.
    metadata: Option<BTreeMap<String, Option<String>>>,
}

/// To which VM a volume is attached.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = PredecessorAttach)]
#[serde(default)]
pub(super) struct ToVm {
    /// The VM's UUID. This host's own: the volume is served here.
    vm_id: Option<String>,
    /// Ignored: the path names the volume.
    #[serde(rename = "volume_id")]
    #[allow(dead_code, reason = "only its type is checked")]
    volume: Option<String>,
}

/// A test failover to clean up after.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = PredecessorCleanup)]
#[serde(default)]
pub(super) struct TestFailover {
    /// The VM of the test, which has the volume.
    test_vm_id: Option<String>,
    /// The volume's UUID.
    volume_id: Option<String>,
    /// The VM to which the volume comes back: this host's own.
    oma_vm_id: Option<String>,
    /// Delete the VM of the test afterwards.
    delete_vm: Option<bool>,
    /// Cut the VM's power instead of asking it to stop.
    force_clean: Option<bool>,
}

/// Returns what a body for a new volume asks for.
pub(super) fn create(body: NewVolume) -> Asked {
    let NewVolume { name, size, disk_offering_id, zone_id, metadata } = body;
    let size = size.unwrap_or_default();
    let mut written = fields([("name", &name), ("disk_offering_id", &disk_offering_id), ("zone_id", &zone_id)]);
    written.insert("size".to_owned(), json!(size));
    if let Some(metadata) = metadata {
        let kept = metadata.into_iter().take(MOST_METADATA);
        let kept: Map<_, _> = kept.map(|(name, value)| (cut(&name), json!(cut(&value.unwrap_or_default())))).collect();
        written.insert("metadata".to_owned(), Value::Object(kept));
    }
    let request = || {
        Ok(Request::Create(Create {
            name: read("name", name.as_deref())?,
            size: bytes(size)?,
            disk_offering: read("disk_offering_id", disk_offering_id.as_deref())?,
            zone: read("zone_id", zone_id.as_deref())?,
        }))
    };
    asked(Kind::Create, None, request(), written)
}

/// Returns what a body for an attach asks for.
pub(super) fn attach(volume: VolumeId, body: &ToVm, root: bool) -> Asked {
    let written = of_volume(volume, fields([("vm_id", &body.vm_id)]));
    let attach = read("vm_id", body.vm_id.as_deref()).map(|vm: VmId| Attach { volume, to: Place::Vm(vm) });
    let (kind, request) = if root {
        (Kind::AttachRoot, attach.map(Request::AttachRoot))
    } else {
        (Kind::Attach, attach.map(Request::Attach))
    };
    asked(kind, Some(volume), request, written)
}

/// Returns the detach of a volume from where it is.
pub(super) fn detach(volume: VolumeId) -> Asked {
    asked(Kind::Detach, Some(volume), Ok(Request::Detach(from_anywhere(volume))), of_volume(volume, Map::new()))
}

/// Returns the deletion of a volume.
pub(super) fn delete(volume: VolumeId) -> Asked {
    asked(Kind::Delete, Some(volume), Ok(Request::Delete(from_anywhere(volume))), of_volume(volume, Map::new()))
}

/// Returns what a body for a cleanup asks for.
pub(super) fn clean_up(body: &TestFailover) -> Asked {
    let TestFailover { test_vm_id, volume_id, oma_vm_id, delete_vm, force_clean } = body;
    let (delete_vm, force) = (delete_vm.unwrap_or_default(), force_clean.unwrap_or_default());
    let texts = [("test_vm_id", test_vm_id), ("volume_id", volume_id), ("oma_vm_id", oma_vm_id)];
    let mut written = fields(texts);
    written.extend([("delete_vm".to_owned(), json!(delete_vm)), ("force_clean".to_owned(), json!(force))]);
    let request = || {
        let back_to = match oma_vm_id.as_deref() {
            None | Some("") => Place::Here,
            own => Place::Vm(read("oma_vm_id", own)?),
        };
        Ok(Request::Cleanup(CleanUp {
            volume: read("volume_id", volume_id.as_deref())?,
            test_vm: read("test_vm_id", test_vm_id.as_deref())?,
            delete_vm,
            force,
            back_to,
        }))
    };
    let volume = volume_id.as_deref().and_then(|volume| volume.parse().ok());
    asked(Kind::Cleanup, volume, request(), written)
}

fn asked(kind: Kind, volume: Option<VolumeId>, request: Result<Request, String>, written: Map<String, Value>) -> Asked {
    let request = request.unwrap_or_else(|why| Request::Unusable(Unusable { kind, volume, why }));
    Asked { request, written: written.into() }
}

fn from_anywhere(volume: VolumeId) -> Detach {
    Detach { volume, from: None, force: false, client_wait_seconds: CLIENT_WAIT_SECONDS }
}

fn bytes(size: i64) -> Result<Size, String> {
    let bytes = u64::try_from(size).ok().and_then(|size| Size::try_from(size).ok());
    bytes.ok_or_else(|| format!("size: a volume's size takes from 1 to {} bytes, not {size}", i64::MAX))
}

fn read<T: std::str::FromStr<Err: std::fmt::Display>>(field: &str, text: Option<&str>) -> Result<T, String> {
    text.unwrap_or_default().parse::<T>().map_err(|error| format!("{field}: {error}"))
}

/// Returns the texts as they are kept. One that is missing is empty, as the predecessor has it.
fn fields<const N: usize>(texts: [(&str, &Option<String>); N]) -> Map<String, Value> {
    let kept = texts.into_iter().map(|(name, text)| (name.to_owned(), json!(cut(text.as_deref().unwrap_or_default()))));
    kept.collect()
}

fn of_volume(volume: VolumeId, mut fields: Map<String, Value>) -> Map<String, Value> {
    fields.insert("volume_id".to_owned(), json!(volume));
    fields
}

fn cut(text: &str) -> String {
    text.chars().take(LONGEST_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: &str = "b3bb9310-1b59-4f62-97e8-cefffdfe3804";

    fn kept(asked: &Asked) -> Value {
        json!(asked.written)
    }

    #[test]
    fn the_paths_volume_wins_and_what_cannot_be_carried_out_keeps_what_was_written() {
        let volume: VolumeId = VOLUME.parse().unwrap();
        let body: ToVm = serde_json::from_value(json!({ "volume_id": "another", "vm_id": VOLUME, "x": 1 })).unwrap();
        let asked = attach(volume, &body, false);
        assert_eq!(asked.request, Request::Attach(Attach { volume, to: Place::Vm(VOLUME.parse().unwrap()) }));
        assert_eq!(kept(&asked), json!({ "volume_id": VOLUME, "vm_id": VOLUME }));

        let asked = attach(volume, &ToVm { vm_id: Some("i-2-7-VM".to_owned()), volume: None }, true);
        let Request::Unusable(unusable) = &asked.request else { panic!("{asked:?}") };
        assert_eq!((unusable.kind, unusable.volume), (Kind::AttachRoot, Some(volume)));
        assert!(unusable.why.starts_with("vm_id: \"i-2-7-VM\" is not a VM id"), "{}", unusable.why);
        assert_eq!(kept(&asked)["vm_id"], "i-2-7-VM");
    }

    #[test]
    fn what_is_kept_of_a_request_is_bounded() {
        let long = "\u{e4}".repeat(60_000);
        let metadata = (0..1000).map(|n| (format!("{n}{long}"), Some(long.clone()))).collect();
        let body = NewVolume { name: Some(long.clone()), metadata: Some(metadata), ..NewVolume::default() };
        let asked = create(body);
        assert!(matches!(asked.request, Request::Unusable(_)));
        assert!(kept(&asked).to_string().len() < 24 * 1024, "{}", kept(&asked).to_string().len());
        let cleanup = TestFailover { volume_id: Some(long), ..TestFailover::default() };
        assert!(kept(&clean_up(&cleanup)).to_string().len() < 1024);
    }

    #[test]
    fn a_cleanup_brings_a_volume_back_to_this_host_unless_another_is_named() {
        let body = |own: Option<&str>| TestFailover {
            test_vm_id: Some(VOLUME.to_owned()),
            volume_id: Some(VOLUME.to_owned()),
            oma_vm_id: own.map(str::to_owned),
            ..TestFailover::default()
        };
        let back_to = |own| match clean_up(&body(own)).request {
            Request::Cleanup(cleanup) => Some(cleanup.back_to),
            _ => None,
        };
        assert_eq!((back_to(None), back_to(Some(""))), (Some(Place::Here), Some(Place::Here)));
        assert_eq!(back_to(Some(VOLUME)), Some(Place::Vm(VOLUME.parse().unwrap())));
        assert_eq!(back_to(Some("oma")), None, "it is named in the failure");
    }
}
