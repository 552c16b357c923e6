//! Operations: begin one, list them, follow one, cancel one.

mod figures;
mod view;

use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use utoipa::IntoParams;

use super::body::{JsonBody, NoQuery, OperationPath, QueryString};
use super::connection;
use super::error::ApiError;
use super::serve::Peer;
use super::volumes::{long_request, wait_limit};
use super::{Context, Ctx, unless_silent};
use crate::cloud::OwnVm;
use crate::effect;
use crate::engine::Stopping;
use crate::identity::{OperationId, VmId, VolumeId};
use crate::operation::{IdempotencyKey, Kind, Operation, OperationState, Request};
use crate::operations::{Refused, Submission, Submitted};
use crate::reason::Code;
use crate::store::OperationFilter;
use crate::wire::{
    ErrorBody, NewOperation, OperationStanding, OperationView, WrongField, as_asked, difference, whole_in_query,
};
pub(super) use figures::{figures, health};
pub(super) use view::{view, views};

/// The header by which a caller names an operation.
const KEY: &str = "idempotency-key";

/// How many operations a list has: the default and the maximum.
const DEFAULT_AND_MAX_LISTED: (u32, u32) = (1000, 1000);

/// The caller's idempotency key, if the request has one.
pub(super) struct Key(Option<IdempotencyKey>);

impl<S: Send + Sync> FromRequestParts<S> for Key {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        key(&parts.headers).map(Self)
    }
}

fn key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, ApiError> {
    let mut values = headers.get_all(KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(ApiError::of(Code::InvalidKey, "the request has more than one Idempotency-Key header"));
    }
    let key = value.to_str().unwrap_or_default().parse::<IdempotencyKey>();
    key.map(Some).map_err(|error| ApiError::of(Code::InvalidKey, format!("the Idempotency-Key header: {error}")))
}

/// Begins an operation. It is on record when answered, and is carried out whatever happens to attachd. The same request
/// again is the same operation: with an `Idempotency-Key` also after it has ended, without one while it is open.
#[utoipa::path(post, path = "/api/v1/operations", operation_id = "beginOperation", request_body = NewOperation,
    params(("Idempotency-Key" = Option<String>, Header, description = "The caller's own name for the operation.", min_length = 1, max_length = 255, pattern = "^[!-~]{1,255}$")),
    responses(
    (status = 201, body = OperationView, description = "On record, durably"),
    (status = 200, body = OperationView, description = "Asked for before: the same operation, as it is now"),
    (status = 400, body = ErrorBody, description = "EMPTY_BODY, BAD_JSON, INVALID_KEY"),
    (status = 409, body = ErrorBody, description = "IDEMPOTENCY_KEY_USED (details: by which operation, and the field that differs), OWN_VM_UNKNOWN, OWN_VM"),
    (status = 413, body = ErrorBody, description = Code::BodyTooLarge.name()),
    (status = 422, body = ErrorBody, description = "INVALID_BODY: details name the field"),
    (status = 429, body = ErrorBody, description = "TOO_MANY_OPERATIONS: details say how many there are and may be"),
    (status = 503, body = ErrorBody, description = "NO_CLOUD; STORE_BUSY, STORE_FULL, STORE_LOST, STORE_FAILED: nothing was begun; STORE_SILENT: not known yet, ask again")))]
pub(super) async fn begin(
    State(context): Ctx,
    Extension(peer): Extension<Peer>,
    Key(key): Key,
    _: QueryString<NoQuery>,
    JsonBody(new): JsonBody<NewOperation>,
) -> Result<Response, ApiError> {
    let (request, limit_seconds) = new.request()?;
    let submission = Submission { request: request.clone(), written: None, key, limit_seconds, uid: peer.uid };
    let submitted = unless_silent(&context, context.inner.operations.submit(submission)).await?;
    let Submitted { operation, new } = match submitted {
        Err(Refused::KeyUsed { key, operation }) => return Err(key_used(&context, &key, operation, &request).await),
        submitted => submitted?,
    };
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    let view = view(&context, &operation).await?;
    let location = [(header::LOCATION, format!("/api/v1/operations/{}", operation.id))];
    Ok(effect::at("answer", || (status, location, Json(view)).into_response()))
}

/// Names the field in which the request differs from the one that has its key.
async fn key_used(context: &Context, key: &IdempotencyKey, used_by: OperationId, request: &Request) -> ApiError {
    let text = format!("the Idempotency-Key {key} belongs to the operation {used_by}, which asks for something else");
    let Ok(have) = context.inner.operations.get(used_by).await else {
        return ApiError::new(Code::KeyUsed, text, json!({ "operation": used_by }));
    };
    let own = match context.inner.cloud.as_ref().and_then(|access| access.own_vm().last_found()) {
        Some(OwnVm::Known { id, .. }) => Some(id),
        _ => None,
    };
    match difference(&as_asked(&have.request, own), &as_asked(request, own)) {
        Some((field, have, asked)) => {
            let details = json!({ "operation": used_by, "field": field, "have": have, "asked": asked });
            let text = format!("{text}: its {field} is {have}, not {asked}. Use a new key for a new operation");
            ApiError::new(Code::KeyUsed, text, details)
        }
        None => ApiError::new(Code::KeyUsed, text, json!({ "operation": used_by })),
    }
}

/// Which operations to list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    /// Only operations of this type.
    #[param(inline, value_type = Option<Kind>)]
    r#type: Option<String>,
    /// Only operations in this state.
    #[param(inline, value_type = Option<OperationState>)]
    status: Option<String>,
    /// Only operations of this volume.
    #[param(inline, value_type = Option<VolumeId>)]
    volume_id: Option<String>,
    /// Only operations of this VM.
    #[param(inline, value_type = Option<VmId>)]
    vm_id: Option<String>,
    /// At most so many, by default 1000. If there are more, the header `Link` has the address of the rest.
    #[param(minimum = 1, maximum = 1000)]
    #[serde(default, deserialize_with = "whole_in_query")]
    limit: Option<u32>,
    /// Only operations that came before this one.
    #[param(inline, value_type = Option<OperationId>)]
    before: Option<String>,
}

/// Lists operations, the newest first. Without any, the body is `null`, as the predecessor's callers know it.
///
/// The rest of a long list is at the address in the header `Link` (`rel="next"`). It is found by the last operation of
/// this part and not by a number of rows: new operations come in at the front, and would move the rows.
#[utoipa::path(get, path = "/api/v1/operations", operation_id = "listOperations", params(Filter), responses(
    (status = 200, body = Option<Vec<OperationView>>, headers(("Link" = String, description = "The rest of the list, if there is more"))),
    (status = 400, body = ErrorBody, description = "INVALID_QUERY, NOT_A_VOLUME_ID, NOT_AN_OPERATION_ID"),
    (status = 404, body = ErrorBody, description = "NO_SUCH_OPERATION: that of `before`")))]
pub(super) async fn list(State(context): Ctx, QueryString(asked): QueryString<Filter>) -> Result<Response, ApiError> {
    let limit = asked.limit.unwrap_or(DEFAULT_AND_MAX_LISTED.0);
    if !(1..=DEFAULT_AND_MAX_LISTED.1).contains(&limit) {
        let most = DEFAULT_AND_MAX_LISTED.1;
        let text = format!("limit takes a number from 1 to {most}, not {limit}; the header Link leads to the rest");
        return Err(ApiError::of(Code::InvalidQuery, text));
    }
    // One more, to know whether there is more.
    let filter = OperationFilter { limit: Some(limit + 1), ..filter(&context, &asked).await? };
    let mut operations = context.inner.operations.list(filter).await?;
    let more = operations.len() > limit as usize;
    operations.truncate(limit as usize);
    let last = operations.last().filter(|_| more).map(|last| last.id);
    let views = views(&context, &operations).await?;
    let mut response = Json((!views.is_empty()).then_some(views)).into_response();
    if let Some(link) = last.and_then(|last| HeaderValue::from_str(&next_page(&asked, limit, last)).ok()) {
        response.headers_mut().insert(header::LINK, link);
    }
    Ok(response)
}

async fn filter(context: &Context, asked: &Filter) -> Result<OperationFilter, ApiError> {
    let invalid = |text: String| ApiError::of(Code::InvalidQuery, text);
    let kind = asked.r#type.as_deref().map(|name| {
        let names = || Kind::ALL.map(Kind::as_str).join(", ");
        Kind::from_name(name).ok_or_else(|| invalid(format!("there is no type {name:?}; there are {}", names())))
    });
    let state = asked.status.as_deref().map(|name| {
        let names = || OperationState::ALL.map(OperationState::as_str).join(", ");
        let state = OperationState::from_name(name);
        state.ok_or_else(|| invalid(format!("there is no status {name:?}; there are {}", names())))
    });
    let vm = asked.vm_id.as_deref().map(str::parse::<VmId>);
    let before = match asked.before.as_deref().map(str::parse::<OperationId>).transpose()? {
        Some(id) => Some(context.inner.operations.get(id).await?.number),
        None => None,
    };
    Ok(OperationFilter {
        kind: kind.transpose()?,
        state: state.transpose()?,
        volume: asked.volume_id.as_deref().map(str::parse::<VolumeId>).transpose()?,
        vm: vm.transpose().map_err(|error| invalid(format!("vm_id: {error}")))?,
        before,
        limit: None,
    })
}

/// The value of `Link`. All parts of it were read before and are plain text.
fn next_page(asked: &Filter, limit: u32, last: OperationId) -> String {
    let pairs = [
        ("type", asked.r#type.as_deref()),
        ("status", asked.status.as_deref()),
        ("volume_id", asked.volume_id.as_deref()),
        ("vm_id", asked.vm_id.as_deref()),
    ];
    let pairs = pairs.into_iter().filter_map(|(name, value)| Some(format!("{name}={}&", value?)));
    format!("</api/v1/operations?{}limit={limit}&before={last}>; rel=\"next\"", pairs.collect::<String>())
}

/// What to wait for.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Wait {
    /// `done`: answer as soon as the operation has ended, however.
    #[param(inline)]
    wait: Option<Done>,
    /// How long to wait for that, from 0 to 3600, by default 60.
    #[param(minimum = 0, maximum = 3600)]
    #[serde(default, deserialize_with = "whole_in_query")]
    timeout_seconds: Option<u32>,
}

#[derive(Clone, Copy, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
enum Done {
    Done,
}

/// Shows one operation, at once or as soon as it has ended.
#[utoipa::path(get, path = "/api/v1/operations/{id}", operation_id = "showOperation", params(("id" = OperationId, Path), Wait), responses(
    (status = 200, body = OperationView),
    (status = 400, body = ErrorBody, description = "NOT_AN_OPERATION_ID, INVALID_QUERY"),
    (status = 404, body = ErrorBody, description = Code::NoSuchOperation.name()),
    (status = 504, body = ErrorBody, description = "WAIT_TIMEOUT: it has not ended yet; details say where it is")))]
pub(super) async fn show(
    State(context): Ctx,
    OperationPath(id): OperationPath,
    Extension(peer): Extension<Peer>,
    QueryString(wait): QueryString<Wait>,
) -> Result<Json<OperationView>, ApiError> {
    let (seconds, limit) = wait_limit(wait.timeout_seconds)?;
    if let Some(Done::Done) = wait.wait {
        let ended = tokio::time::timeout(limit, ended(&context, &peer, id));
        let ended = connection::while_there(peer.connection.watch().as_ref(), ended).await;
        if let Ok(ended) = ended.ok_or_else(ApiError::client_gone)? {
            return Ok(Json(view(&context, &*ended?).await?));
        }
        let now = view(&context, &*context.inner.operations.get(id).await?).await?;
        if !now.status.is_ended() {
            return Err(not_ended(now, seconds));
        }
        return Ok(Json(now));
    }
    let operation = context.inner.operations.get(id).await?;
    Ok(Json(view(&context, &operation).await?))
}

fn not_ended(now: OperationView, seconds: u32) -> ApiError {
    let place = now.step.as_ref().map_or("", |step| step.text.as_str());
    let text = format!("the operation {} is {} after {seconds} s: {place}", now.id, now.status);
    ApiError::new(Code::WaitTimeout, text, json!(OperationStanding { status: now.status, step: now.step }))
}

/// Waits until the operation has ended. A daemon that stops waits for nobody.
async fn ended(context: &Context, peer: &Peer, id: OperationId) -> Result<std::sync::Arc<Operation>, ApiError> {
    let operations = &context.inner.operations;
    let now = operations.get(id).await?;
    if now.state.is_ended() {
        return Ok(now);
    }
    let _slot = long_request(context, peer)?;
    let mut events = context.inner.engine.events()?;
    let stopping = async { while !matches!(events.recv().await, Err(RecvError::Closed)) {} };
    tokio::select! {
        ended = operations.ended(id) => Ok(ended?),
        () = stopping => Err(Stopping.into()),
    }
}

/// Calls an operation off, as long as nothing was asked of CloudStack. Answers when that is decided.
#[utoipa::path(delete, path = "/api/v1/operations/{id}", operation_id = "cancelOperation", params(("id" = OperationId, Path)), responses(
    (status = 200, body = OperationView, description = "Cancelled"),
    (status = 400, body = ErrorBody, description = "NOT_AN_OPERATION_ID, INVALID_QUERY"),
    (status = 404, body = ErrorBody, description = Code::NoSuchOperation.name()),
    (status = 409, body = ErrorBody, description = "TOO_LATE: it goes on, or has ended; details have the operation"),
    (status = 503, body = ErrorBody, description = "STORE_BUSY, STORE_FULL, STORE_LOST, STORE_FAILED; STORE_SILENT: not known yet, ask again")))]
pub(super) async fn cancel(
    State(context): Ctx,
    OperationPath(id): OperationPath,
    _: QueryString<NoQuery>,
) -> Result<Response, ApiError> {
    let cancelled = unless_silent(&context, context.inner.operations.cancel(id)).await?;
    let operation = match cancelled {
        Err(refused @ Refused::TooLate { .. }) => {
            let operation = view(&context, &*context.inner.operations.get(id).await?).await?;
            return Err(ApiError::new(Code::TooLate, refused.to_string(), json!({ "operation": operation })));
        }
        cancelled => cancelled?,
    };
    let view = view(&context, &operation).await?;
    Ok(effect::at("answer", || Json(view).into_response()))
}

impl From<WrongField> for ApiError {
    fn from(wrong: WrongField) -> Self {
        let details = json!({ "field": wrong.field.name() });
        Self::new(Code::InvalidBody, wrong.to_string(), details)
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        let (code, text) = (refused.code(), refused.to_string());
        let details = match &refused {
            Refused::OwnVm { vm, .. } => json!({ "vm_id": vm }),
            Refused::KeyUsed { operation, .. } => json!({ "operation": operation }),
            Refused::TooMany { used, limit, .. } => json!({ "used": used, "limit": limit }),
            Refused::Unknown(id) | Refused::TooLate { id, .. } => json!({ "operation": id }),
            _ => json!({}),
        };
        Self::new(code, text, details)
    }
}
