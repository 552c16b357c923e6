//! Devices: every whole disk that is present, and why it cannot be a volume's disk, if so.

use axum::extract::State;
use axum::{Extension, Json};

use super::body::{NoQuery, QueryString};
use super::error::ApiError;
use super::serve::Peer;
use super::{Context, Ctx};
use crate::device::facts::LinkTarget;
use crate::engine::world::World;
use crate::reason::Code;
use crate::volume::User;
use crate::wire::{DeviceList, DeviceView, Resynced};

/// Lists the present disks, by number.
#[utoipa::path(get, path = "/api/v1/devices", operation_id = "listDevices", responses((status = 200, body = DeviceList)))]
pub(super) async fn list(State(context): Ctx, _: QueryString<NoQuery>) -> Result<Json<DeviceList>, ApiError> {
    let look = |world: &World| {
        let view = |device: &crate::device::table::Device| {
            let facts = &device.facts;
            let identity = facts.identity.as_ref().ok();
            DeviceView {
                node: format!("/dev/{}", facts.name),
                devnum: facts.devnum,
                diskseq: facts.diskseq,
                size_bytes: facts.size_bytes,
                read_only: facts.read_only,
                scheme: identity.map(|identity| identity.scheme.into()),
                serial: identity.map(|identity| identity.serial),
                link: identity.map(|identity| identity.link.clone()),
                link_target: identity.map(|identity| match identity.link_target {
                    LinkTarget::Missing => "missing".to_owned(),
                    LinkTarget::Other => "other".to_owned(),
                    LinkTarget::Device(devnum, _) => devnum.to_string(),
                }),
                uses: identity
                    .map(|identity| identity.uses.iter().map(ToString::to_string).collect())
                    .unwrap_or_default(),
                settled: device.settled,
                volume_id: identity.and_then(|identity| world.volume_of(identity.serial)),
                unread: world.table.unread(facts.devnum, facts.diskseq).map(str::to_owned),
                unusable: match &facts.identity {
                    Err(why) => Some(why.to_string()),
                    Ok(identity) => identity.instead.as_ref().map(|_| format!("the scheme {} is off", identity.scheme)),
                },
            }
        };
        let mut devices: Vec<DeviceView> = world.table.all().map(view).collect();
        devices.sort_by_key(|device| device.devnum);
        DeviceList { count: devices.len(), devices }
    };
    Ok(Json(context.inner.engine.read(look).await?))
}

/// Reads all disks and the folder of exports again. Answers when every volume has been compared with them.
#[utoipa::path(post, path = "/api/v1/resync", operation_id = "resync", responses((status = 200, body = Resynced)))]
pub(super) async fn resync(
    State(context): Ctx,
    Extension(peer): Extension<Peer>,
    _: QueryString<NoQuery>,
) -> Result<Json<Resynced>, ApiError> {
    read_again(&context, &peer).await?;
    Ok(Json(Resynced { message: "Everything was read again and compared".to_owned() }))
}

/// Has everything read again, and returns when every volume has been compared with it.
pub(super) async fn read_again(context: &Context, peer: &Peer) -> Result<(), ApiError> {
    let done = context.inner.engine.resync("asked for", Some(User(peer.uid))).await?;
    done.map_err(|why| ApiError::of(Code::ResyncFailed, format!("the disks cannot be read: {why}")))
}
