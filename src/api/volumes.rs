//! Volumes: intent, disk, export and story in one object.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use utoipa::IntoParams;

use super::body::{QueryString, VolumePath};
use super::connection;
use super::error::ApiError;
use super::pages;
use super::serve::Peer;
use super::shares::Slot;
use super::{Context, Ctx};
use crate::engine::world::{Shown, Volume, World};
use crate::identity::VolumeId;
use crate::reason::Code;
use crate::store::Story;
use crate::volume::{self, Entry};
use crate::wire::{
    EntryView, ErrorBody, EvidenceView, ExportState, ExportView, ReasonView, VolumeList, VolumeView,
    WaitTimeoutDetails, whole_in_query,
};

/// How long `?wait=` waits, in seconds: the default and the maximum.
const DEFAULT_AND_MAX_WAIT_SECONDS: (u32, u32) = (60, 3600);

pub(super) fn export(volume: &Shown, listen: std::net::SocketAddr) -> ExportView {
    let name = volume.intent.volume.export_name();
    let state = match (volume.published, volume.state) {
        (true, volume::State::Ready) => ExportState::Served,
        (true, _) => ExportState::Published,
        (false, _) => ExportState::None,
    };
    ExportView { uri: format!("nbd://{listen}/{name}"), name, state }
}

/// The node of the volume's disk, if that is here.
pub(super) fn node(world: &World, volume: &Shown) -> Option<String> {
    let present = world.table.with_serial(volume.intent.serial()).next();
    present.map(|device| format!("/dev/{}", device.facts.name))
}

fn view(volume: &Shown, device_node: Option<String>, listen: std::net::SocketAddr) -> VolumeView {
    let mapping = volume.mapping.as_ref();
    let size_bytes = mapping.map(|mapping| mapping.size_bytes);
    VolumeView {
        volume_id: volume.intent.volume,
        serial: volume.intent.serial(),
        vm_id: volume.intent.vm_id.clone(),
        state: volume.state,
        since: volume.since,
        device_path: mapping.map(|mapping| mapping.link.clone()),
        device_node,
        size_bytes,
        diskseq: mapping.map(|mapping| mapping.diskseq),
        export: export(volume, listen),
        evidence: mapping.map(EvidenceView::from),
        reason: volume.reason.as_ref().map(ReasonView::from),
        timeline: None,
        timeline_incomplete: false,
        size: size_bytes.unwrap_or(0),
        cloudstack_data: None,
    }
}

/// Returns the volume with its story.
async fn whole(context: &Context, mut view: VolumeView) -> Result<Json<VolumeView>, ApiError> {
    let (timeline, incomplete) = timeline(context, view.volume_id).await?;
    view.timeline = Some(timeline.into_iter().map(EntryView::from).collect());
    view.timeline_incomplete = incomplete;
    Ok(Json(view))
}

/// Which volumes to list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct VolumeFilter {
    /// Only volumes in this state.
    #[param(inline, value_type = Option<volume::State>)]
    state: Option<String>,
    /// Only volumes of this VM.
    vm_id: Option<String>,
}

/// Lists volumes, by id.
#[utoipa::path(get, path = "/api/v1/volumes", operation_id = "listVolumes", params(VolumeFilter), responses((status = 200, body = VolumeList)))]
pub(super) async fn list(
    State(context): Ctx,
    QueryString(filter): QueryString<VolumeFilter>,
) -> Result<Response, ApiError> {
    let state = filter.state.as_deref().map(state_of).transpose()?;
    let listen = context.in_use().settings.export.listen;
    let pick = move |world: &World, volume: &Volume| {
        let wanted = state.is_none_or(|state| volume.state == state)
            && filter.vm_id.as_ref().is_none_or(|vm| volume.intent.vm_id == *vm);
        wanted.then(|| (volume.shown(), node(world, volume)))
    };
    let make = move |picked: Vec<(Arc<Shown>, Option<String>)>| {
        let volumes: Vec<_> = picked.into_iter().map(|(volume, node)| view(&volume, node, listen)).collect();
        VolumeList { count: volumes.len(), volumes }
    };
    pages::list(&context.inner.engine, pick, make).await
}

/// What to wait for.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct WaitOptions {
    /// Answer as soon as the volume is in this state, like `ready`.
    #[param(inline, value_type = Option<volume::State>)]
    wait: Option<String>,
    /// How long to wait for that, from 0 to 3600, by default 60.
    #[param(minimum = 0, maximum = 3600)]
    #[serde(default, deserialize_with = "whole_in_query")]
    timeout_seconds: Option<u32>,
}

/// Shows one volume, at once or as soon as it is in a state.
#[utoipa::path(get, path = "/api/v1/volumes/{volume_id}", operation_id = "showVolume", params(("volume_id" = VolumeId, Path), WaitOptions), responses(
    (status = 200, body = VolumeView),
    (status = 404, body = ErrorBody),
    (status = 504, body = ErrorBody, description = "WAIT_TIMEOUT: it is not in that state yet; details say where it is")))]
pub(super) async fn show(
    State(context): Ctx,
    VolumePath(volume): VolumePath,
    Extension(peer): Extension<Peer>,
    QueryString(wait): QueryString<WaitOptions>,
) -> Result<Json<VolumeView>, ApiError> {
    let (seconds, limit) = wait_limit(wait.timeout_seconds)?;
    if let Some(state) = &wait.wait {
        let state = state_of(state)?;
        let waited = tokio::time::timeout(limit, reached(&context, &peer, volume, state));
        let waited = connection::while_there(peer.connection.watch().as_ref(), waited)
            .await
            .ok_or_else(ApiError::client_gone)?;
        if let Ok(reached) = waited {
            return whole(&context, reached?).await;
        }
        let now = look(&context, volume).await?;
        let text = format!("volume {volume} is {} after {seconds} s, not {state}", now.state);
        let details = json!(WaitTimeoutDetails::from(now));
        return Err(ApiError::new(Code::WaitTimeout, text, details));
    }
    whole(&context, look(&context, volume).await?).await
}

/// How long a request may wait, in seconds and as a duration.
pub(super) fn wait_limit(asked: Option<u32>) -> Result<(u32, Duration), ApiError> {
    let (default, most) = DEFAULT_AND_MAX_WAIT_SECONDS;
    let seconds = asked.unwrap_or(default);
    if seconds > most {
        let text = format!("timeout_seconds takes at most {most}, not {seconds}; ask again when it is over");
        return Err(ApiError::of(Code::InvalidQuery, text));
    }
    Ok((seconds, Duration::from_secs(seconds.into())))
}

/// Waits until the volume is in this state and returns it as it was then; a moment later it may be in another state.
async fn reached(
    context: &Context,
    peer: &Peer,
    volume: VolumeId,
    state: volume::State,
) -> Result<VolumeView, ApiError> {
    let _slot = long_request(context, peer)?;
    // Subscribe first and read after that, so that no change is missed.
    let mut events = context.inner.engine.events();
    loop {
        let now = look(context, volume).await?;
        if now.state == state {
            return Ok(now);
        }
        // A daemon that stops sends no more events but can still be read.
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

/// Takes a slot for a request that may stay open.
pub(super) fn long_request(context: &Context, peer: &Peer) -> Result<Slot, ApiError> {
    let slots = &context.inner.long_requests;
    slots.try_take(peer.owner).ok_or_else(|| {
        let share = slots.share(peer.owner);
        let text =
            format!("this user already has its share of {share} requests that wait for events, or all are in use");
        ApiError::of(Code::TooManyListeners, text + "; close some")
    })
}

async fn look(context: &Context, volume: VolumeId) -> Result<VolumeView, ApiError> {
    let listen = context.in_use().settings.export.listen;
    let look = move |world: &World| world.volume(volume).map(|volume| (volume.shown(), node(world, volume)));
    let (shown, node) = context.inner.engine.read(look).await?.ok_or_else(|| ApiError::no_such_volume(volume))?;
    Ok(view(&shown, node, listen))
}

/// Returns the story: the store's entries and those that are not written yet; and whether stored entries could not be
/// read.
async fn timeline(context: &Context, volume: VolumeId) -> Result<(Vec<Entry>, bool), ApiError> {
    let untold = move |world: &World| {
        world.volume(volume).map(|volume| volume.notes.iter().map(|note| note.entry.clone()).collect::<Vec<_>>())
    };
    let untold = context.inner.engine.read(untold).await?.unwrap_or_default();
    let Story { mut entries, failure } = context.inner.store.story(volume).await;
    // An entry may have been written to the store between the two reads.
    let new: Vec<Entry> = untold.into_iter().filter(|entry| !entries.contains(entry)).collect();
    entries.extend(new);
    Ok((entries, failure.is_some()))
}

fn state_of(name: &str) -> Result<volume::State, ApiError> {
    volume::State::from_name(name).ok_or_else(|| {
        let names = volume::State::ALL.map(volume::State::as_str).join(", ");
        ApiError::of(Code::InvalidQuery, format!("there is no state {name:?}; there are {names}"))
    })
}
