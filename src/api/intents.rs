//! Intents: announcing a volume, and withdrawing it.

use std::ops::RangeInclusive;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::json;
use utoipa::IntoParams;

use super::body::{JsonBody, NoQuery, QueryString, VolumePath};
use super::error::ApiError;
use super::pages;
use super::serve::Peer;
use super::{Ctx, unless_silent};
use crate::clock::{self, Steady};
use crate::effect;
use crate::engine::world::Shown;
use crate::engine::{Accepted, Rejection, Stopping, Withdrawal};
use crate::helper_client::Holders;
use crate::identity::VolumeId;
use crate::reason::Code;
use crate::volume::{self, IntentOrigin, User};
use crate::wire::{ErrorBody, IntentList, IntentView, NewIntent, WithdrawnView};

/// The longest VM id that the predecessor's tables can hold.
const LONGEST_VM_ID: usize = 64;

/// The possible sizes of a disk in bytes; no disk and no database has more.
const SIZES: RangeInclusive<u64> = 1..=i64::MAX.unsigned_abs();

fn view(volume: &Shown) -> IntentView {
    let intent = &volume.intent;
    IntentView {
        volume_id: intent.volume,
        serial: intent.serial(),
        vm_id: intent.vm_id.clone(),
        size_bytes: intent.size_bytes,
        deadline_seconds: intent.deadline_seconds,
        deadline_at: intent.deadline_at(Steady::now(), clock::wall()),
        created_at: intent.created_at,
        uid: intent.uid,
        state: volume.state,
    }
}

/// Lists all intents, oldest first.
#[utoipa::path(get, path = "/api/v1/intents", operation_id = "listIntents", responses((status = 200, body = IntentList)))]
pub(super) async fn list(State(context): Ctx, _: QueryString<NoQuery>) -> Result<Response, ApiError> {
    let make = |intents: Vec<Arc<Shown>>| {
        let mut intents: Vec<IntentView> = intents.iter().map(|volume| view(volume)).collect();
        intents.sort_by_key(|intent| (intent.created_at, intent.volume_id));
        IntentList { count: intents.len(), intents }
    };
    pages::list(&context.inner.engine, |_, volume| Some(volume.shown()), make).await
}

/// Announces a volume. Durable when answered; the same request again changes nothing.
#[utoipa::path(post, path = "/api/v1/intents", operation_id = "addIntent", request_body = NewIntent, responses(
    (status = 201, body = IntentView, description = "Accepted, durably"),
    (status = 200, body = IntentView, description = "Accepted before"),
    (status = 400, body = ErrorBody, description = "EMPTY_BODY, BAD_JSON, NOT_A_VOLUME_ID"),
    (status = 413, body = ErrorBody, description = Code::BodyTooLarge.name()),
    (status = 409, body = ErrorBody, description = "INTENT_DIFFERS, SERIAL_TAKEN, IN_USE_BY_HOST, BEING_WITHDRAWN, SEALED (details: by which operation)"),
    (status = 422, body = ErrorBody, description = Code::InvalidBody.name()),
    (status = 429, body = ErrorBody, description = "TOO_MANY_INTENTS: details say how many there are and may be"),
    (status = 503, body = ErrorBody, description = "STORE_BUSY, STORE_FULL, STORE_LOST, STORE_FAILED: nothing was changed; STORE_SILENT: not known yet, ask again")))]
pub(super) async fn add(
    State(context): Ctx,
    Extension(peer): Extension<Peer>,
    _: QueryString<NoQuery>,
    JsonBody(new): JsonBody<NewIntent>,
) -> Result<Response, ApiError> {
    let volume: VolumeId = new.volume_id.parse()?;
    let vm_id = new.vm_id.unwrap_or_default();
    if vm_id.len() > LONGEST_VM_ID || vm_id.chars().any(char::is_control) {
        let text = format!("vm_id takes at most {LONGEST_VM_ID} printable characters");
        return Err(ApiError::new(Code::InvalidBody, text, json!({ "field": "vm_id" })));
    }
    if new.size_bytes.is_some_and(|size| !SIZES.contains(&size)) {
        let text = format!(
            "size_bytes takes a number from {} to {}; leave it out to accept any size",
            SIZES.start(),
            SIZES.end()
        );
        return Err(ApiError::new(Code::InvalidBody, text, json!({ "field": "size_bytes" })));
    }
    let intent = volume::Intent {
        volume,
        vm_id,
        size_bytes: new.size_bytes,
        deadline_seconds: new.deadline_seconds,
        deadline: volume::Intent::deadline_from(Steady::now(), new.deadline_seconds),
        created_at: clock::wall(),
        uid: peer.uid,
        origin: IntentOrigin::Announced,
    };
    let accepted = answered(&context, context.inner.engine.intend(intent)).await?;
    let status = match accepted {
        Accepted::New => StatusCode::CREATED,
        Accepted::Known => StatusCode::OK,
    };
    let view = view_of(&context, volume).await?;
    let location = [(header::LOCATION, format!("/api/v1/intents/{volume}"))];
    Ok(effect::at("answer", || (status, location, Json(view)).into_response()))
}

async fn answered<T>(
    context: &super::Context,
    asked: impl Future<Output = Result<Result<T, Rejection>, Stopping>>,
) -> Result<T, ApiError> {
    Ok(unless_silent(context, asked).await???)
}

/// Shows one intent.
#[utoipa::path(get, path = "/api/v1/intents/{volume_id}", operation_id = "showIntent", params(("volume_id" = VolumeId, Path)),
    responses((status = 200, body = IntentView), (status = 404, body = ErrorBody)))]
pub(super) async fn show(
    State(context): Ctx,
    VolumePath(volume): VolumePath,
    _: QueryString<NoQuery>,
) -> Result<Json<IntentView>, ApiError> {
    Ok(Json(view_of(&context, volume).await?))
}

async fn view_of(context: &super::Context, volume: VolumeId) -> Result<IntentView, ApiError> {
    let view = context.inner.engine.read(move |world| world.volume(volume).map(|volume| view(volume))).await?;
    view.ok_or_else(|| ApiError::no_such_volume(volume))
}

/// The options of a withdrawal.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct WithdrawOptions {
    /// Withdraw even while NBD clients are connected; they stay connected, new ones are refused.
    #[serde(default)]
    force: bool,
}

/// Withdraws an intent, in any state: removes rows, export and claim, in this order, and then answers.
#[utoipa::path(delete, path = "/api/v1/intents/{volume_id}", operation_id = "withdrawIntent", params(("volume_id" = VolumeId, Path), WithdrawOptions), responses(
    (status = 200, body = WithdrawnView),
    (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "CLIENTS_CONNECTED, CLIENTS_UNKNOWN (details: clients, and clients_exact: all of them use this export; if not, some may use others), BEING_WITHDRAWN, SEALED (details: by which operation)"),
    (status = 503, body = ErrorBody, description = "STORE_BUSY, STORE_FULL, STORE_LOST, STORE_FAILED: nothing was changed; STORE_SILENT: not known yet, ask again; EXPORT_STUCK")))]
pub(super) async fn withdraw(
    State(context): Ctx,
    Extension(peer): Extension<Peer>,
    VolumePath(volume): VolumePath,
    QueryString(options): QueryString<WithdrawOptions>,
) -> Result<Response, ApiError> {
    let asked = context.inner.engine.withdraw(volume, options.force, User(peer.uid));
    let Withdrawal { clients } = answered(&context, asked).await?;
    let Holders { clients, exact } = clients;
    let message = if clients.is_empty() {
        "Withdrawn: the export is gone".to_owned()
    } else {
        let count = clients.len();
        format!(
            "Withdrawn: new clients are refused; {count} connection(s) to the NBD server stay open until they are closed (`ss -K` or a restart of the server cuts them)"
        )
    };
    let view = WithdrawnView { volume_id: volume, message, clients_still_connected: clients, clients_exact: exact };
    Ok(effect::at("answer", || Json(view).into_response()))
}
