//! Volumes: the intent, its disk, its export and its story in one piece.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use utoipa::{IntoParams, ToSchema};

use super::body::{QueryString, VolumePath, whole_in_query};
use super::error::{ApiError, ErrorBody};
use super::line;
use super::serve::Peer;
use super::shares::Place;
use super::{Context, Ctx};
use crate::device::DevNum;
use crate::device::evidence::Evidence;
use crate::engine::world::{Volume, World};
use crate::identity::{Serial, VolumeId};
use crate::store::Story;
use crate::volume::{self, Entry, Reason};

/// How long `?wait=` waits when nothing else is asked for, and at most.
const WAIT_SECONDS: (u32, u32) = (60, 3600);

/// A volume.
#[derive(Serialize, ToSchema)]
pub(super) struct VolumeView {
    volume_id: VolumeId,
    serial: Serial,
    vm_id: String,
    state: volume::State,
    /// Since when it is in this state.
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
    /// The by-id path, once a device was proven.
    device_path: Option<String>,
    /// What the by-id path resolves to now.
    device_node: Option<String>,
    size_bytes: Option<u64>,
    diskseq: Option<u64>,
    export: ExportView,
    evidence: Option<EvidenceView>,
    reason: Option<Reason>,
    /// The story, oldest first; left out in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    timeline: Option<Vec<Entry>>,
    /// The store does not answer: the story is what is not on record yet, and no more.
    timeline_incomplete: bool,
    /// `size_bytes` under the predecessor's name; 0 while unknown.
    size: u64,
    /// As the predecessor has it.
    #[schema(value_type = Option<String>)]
    cloudstack_data: Option<()>,
}

/// An export.
#[derive(Serialize, ToSchema)]
pub(super) struct ExportView {
    pub(super) name: String,
    pub(super) uri: String,
    /// `none`, `published` (offered, not proven yet) or `served`.
    pub(super) state: &'static str,
}

/// What ties the device to the volume.
#[derive(Serialize, ToSchema)]
struct EvidenceView {
    serial: Serial,
    scheme: String,
    #[schema(value_type = String)]
    devnum: DevNum,
    diskseq: u64,
    size_bytes: u64,
    read_only: bool,
    boot_id: String,
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
}

impl ExportView {
    pub(super) fn of(volume: &Volume, listen: std::net::SocketAddr) -> Self {
        let name = volume.intent.volume.export_name();
        let state = match (volume.published, volume.state) {
            (true, volume::State::Ready) => "served",
            (true, _) => "published",
            (false, _) => "none",
        };
        Self { uri: format!("nbd://{listen}/{name}"), name, state }
    }
}

impl EvidenceView {
    fn of(evidence: &Evidence) -> Self {
        Self {
            serial: evidence.serial,
            scheme: evidence.scheme.clone(),
            devnum: evidence.devnum,
            diskseq: evidence.diskseq,
            size_bytes: evidence.size_bytes,
            read_only: evidence.read_only,
            boot_id: evidence.boot_id.clone(),
            at: evidence.at,
        }
    }
}

impl VolumeView {
    fn of(volume: &Volume, world: &World, listen: std::net::SocketAddr) -> Self {
        let present = world.table.with_serial(volume.intent.serial()).next();
        let mapping = volume.mapping.as_ref();
        let size_bytes = mapping.map(|mapping| mapping.size_bytes);
        Self {
            volume_id: volume.intent.volume,
            serial: volume.intent.serial(),
            vm_id: volume.intent.vm_id.clone(),
            state: volume.state,
            since: volume.since,
            device_path: mapping.map(|mapping| mapping.link.clone()),
            device_node: present.map(|device| format!("/dev/{}", device.facts.name)),
            size_bytes,
            diskseq: mapping.map(|mapping| mapping.diskseq),
            export: ExportView::of(volume, listen),
            evidence: mapping.map(EvidenceView::of),
            reason: volume.reason.clone(),
            timeline: None,
            timeline_incomplete: false,
            size: size_bytes.unwrap_or(0),
            cloudstack_data: None,
        }
    }
}

impl VolumeView {
    fn tell(&mut self, (timeline, incomplete): (Vec<Entry>, bool)) {
        (self.timeline, self.timeline_incomplete) = (Some(timeline), incomplete);
    }
}

/// Which volumes.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    /// Only those in this state.
    #[param(inline, value_type = Option<volume::State>)]
    state: Option<String>,
    /// Only those of this VM.
    vm_id: Option<String>,
}

/// Volumes.
#[derive(Serialize, ToSchema)]
pub(super) struct VolumeList {
    volumes: Vec<VolumeView>,
    count: usize,
}

/// Lists volumes, by id.
#[utoipa::path(get, path = "/api/v1/volumes", operation_id = "listVolumes", params(Filter), responses((status = 200, body = VolumeList)))]
pub(super) async fn list(
    State(context): Ctx,
    QueryString(filter): QueryString<Filter>,
) -> Result<Json<VolumeList>, ApiError> {
    let state = filter.state.as_deref().map(state_of).transpose()?;
    let listen = context.inner.settings.listen;
    let look = move |world: &World| {
        let wanted = |volume: &&Volume| {
            state.is_none_or(|state| volume.state == state)
                && filter.vm_id.as_ref().is_none_or(|vm| volume.intent.vm_id == *vm)
        };
        world.volumes().filter(wanted).map(|volume| VolumeView::of(volume, world, listen)).collect::<Vec<_>>()
    };
    let mut volumes = context.inner.engine.read(look).await?;
    volumes.sort_by_key(|volume| volume.volume_id);
    Ok(Json(VolumeList { count: volumes.len(), volumes }))
}

/// What to wait for.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Wait {
    /// Answer as soon as the volume is in this state, like `ready`.
    #[param(inline, value_type = Option<volume::State>)]
    wait: Option<String>,
    /// How long to wait for that, from 0 to 3600, by default 60.
    #[param(minimum = 0, maximum = 3600)]
    #[serde(default, deserialize_with = "whole_in_query")]
    timeout_seconds: Option<u32>,
}

/// Shows one volume, at once or as soon as it is in a state.
#[utoipa::path(get, path = "/api/v1/volumes/{volume_id}", operation_id = "showVolume", params(("volume_id" = VolumeId, Path), Wait), responses(
    (status = 200, body = VolumeView),
    (status = 404, body = ErrorBody),
    (status = 504, body = ErrorBody, description = "WAIT_TIMEOUT: it is not in that state yet; details say where it is")))]
pub(super) async fn show(
    State(context): Ctx,
    VolumePath(volume): VolumePath,
    Extension(peer): Extension<Peer>,
    QueryString(wait): QueryString<Wait>,
) -> Result<Json<VolumeView>, ApiError> {
    let seconds = wait.timeout_seconds.unwrap_or(WAIT_SECONDS.0);
    if seconds > WAIT_SECONDS.1 {
        let text =
            format!("timeout_seconds takes at most {}, not {seconds}; ask again when it is over", WAIT_SECONDS.1);
        return Err(ApiError::bad_request("INVALID_QUERY", text));
    }
    if let Some(state) = &wait.wait {
        let state = state_of(state)?;
        let limit = Duration::from_secs(seconds.into());
        let waited = tokio::time::timeout(limit, reached(&context, &peer, volume, state));
        let waited = line::while_there(peer.line.watch().as_ref(), waited).await.ok_or_else(ApiError::client_gone)?;
        if let Ok(reached) = waited {
            let mut view = reached?;
            view.tell(timeline(&context, volume).await?);
            return Ok(Json(view));
        }
        let now = look(&context, volume).await?;
        let text = format!("volume {volume} is {} after {seconds} s, not {state}", now.state);
        let details = json!({ "state": now.state, "reason": now.reason });
        return Err(ApiError::new(StatusCode::GATEWAY_TIMEOUT, "WAIT_TIMEOUT", text, details));
    }
    let mut view = look(&context, volume).await?;
    view.tell(timeline(&context, volume).await?);
    Ok(Json(view))
}

/// The volume as it was when it was found in that state: a moment later it may be in another.
async fn reached(
    context: &Context,
    peer: &Peer,
    volume: VolumeId,
    state: volume::State,
) -> Result<VolumeView, ApiError> {
    let _place = long_request(context, peer)?;
    // Listen first, then look: nothing falls between.
    let mut events = context.inner.engine.events();
    loop {
        let now = look(context, volume).await?;
        if now.state == state {
            return Ok(now);
        }
        // A daemon that stops tells nothing any more, but it still knows.
        let events = events.as_mut().map_err(|stopping| *stopping)?;
        loop {
            match events.recv().await {
                Ok(event) if event.volume_id == volume => break,
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => break,
                Err(RecvError::Closed) => return Err(crate::engine::Stopping.into()),
            }
        }
    }
}

/// A place among the requests that may stay open.
pub(super) fn long_request(context: &Context, peer: &Peer) -> Result<Place, ApiError> {
    let places = &context.inner.long_requests;
    places.try_take(peer.uid).ok_or_else(|| {
        let share = places.share(peer.uid);
        let text =
            format!("this user already has its share of {share} requests that wait for events, or all are in use");
        ApiError::unavailable("TOO_MANY_LISTENERS", text + "; close some")
    })
}

async fn look(context: &Context, volume: VolumeId) -> Result<VolumeView, ApiError> {
    let listen = context.inner.settings.listen;
    let look = move |world: &World| world.volume(volume).map(|volume| VolumeView::of(volume, world, listen));
    context.inner.engine.read(look).await?.ok_or_else(|| ApiError::no_such_volume(volume))
}

/// What the store has, and what it has not been told yet; and whether what is on record is missing.
async fn timeline(context: &Context, volume: VolumeId) -> Result<(Vec<Entry>, bool), ApiError> {
    let untold = move |world: &World| {
        world.volume(volume).map(|volume| volume.notes.iter().map(|note| note.entry.clone()).collect::<Vec<_>>())
    };
    let untold = context.inner.engine.read(untold).await?.unwrap_or_default();
    let Story { mut entries, failure } = context.inner.store.story(volume).await;
    // It may have been told of an entry between the two looks.
    let new: Vec<Entry> = untold.into_iter().filter(|entry| !entries.contains(entry)).collect();
    entries.extend(new);
    Ok((entries, failure.is_some()))
}

fn state_of(name: &str) -> Result<volume::State, ApiError> {
    volume::State::from_name(name).ok_or_else(|| {
        let names = volume::State::ALL.map(volume::State::as_str).join(", ");
        ApiError::bad_request("INVALID_QUERY", format!("there is no state {name:?}; there are {names}"))
    })
}
