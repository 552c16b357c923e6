//! The stream of events (server-sent events). It has no keep-alives, so an idle daemon has no wake-ups, with or
//! without listeners.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::Sse;
use axum::response::sse::Event;
use futures_util::Stream;
use futures_util::stream;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use utoipa::IntoParams;

use super::body::QueryString;
use super::connection;
use super::error::ApiError;
use super::operations;
use super::serve::Peer;
use super::volumes::long_request;
use super::{Context, Ctx};
use crate::engine::{self, SharedEvent};
use crate::identity::{OperationId, VolumeId};
use crate::operation::Operation;
use crate::wire::{EventView, MISSED, Missed, OPERATION, OperationView, ReasonView, VOLUME};

/// Which events to send.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct EventFilter {
    /// Only events of this volume, and of its operations.
    #[param(inline, value_type = Option<VolumeId>)]
    volume_id: Option<String>,
    /// Only events of this operation, and none of volumes.
    #[param(inline, value_type = Option<OperationId>)]
    operation: Option<String>,
}

/// The data of an event, by its name.
#[derive(utoipa::ToSchema)]
#[schema(as = StreamedEvent)]
#[serde(untagged)]
#[expect(dead_code, reason = "for the OpenAPI document")]
enum StreamedEvent {
    Volume(Box<EventView>),
    Operation(Box<OperationView>),
}

/// Sends what happens from now on: `volume` events, `operation` events (an operation as it is then), and `missed` if the
/// listener was too slow.
#[utoipa::path(get, path = "/api/v1/events", operation_id = "followEvents", params(EventFilter), responses(
    (status = 200, body = StreamedEvent, content_type = "text/event-stream")))]
pub(super) async fn follow(
    State(context): Ctx,
    Extension(peer): Extension<Peer>,
    QueryString(filter): QueryString<EventFilter>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let only = Only {
        volume: filter.volume_id.as_deref().map(str::parse::<VolumeId>).transpose()?,
        operation: filter.operation.as_deref().map(str::parse::<OperationId>).transpose()?,
    };
    let slot = long_request(&context, &peer)?;
    let sources = Sources {
        volumes: context.inner.engine.events()?,
        operations: context.inner.operations.subscribe(),
        context: context.clone(),
    };
    peer.connection.carries_events();
    // The first line tells the listener that from now on no event is left out.
    let hello = stream::once(async { Ok(Event::default().comment("listening")) });
    let hang_up = peer.connection.watch();
    let follow = stream::unfold((sources, slot, hang_up), move |(mut sources, slot, hang_up)| async move {
        let event = connection::while_there(hang_up.as_ref(), sources.next(only)).await??;
        Some((Ok(event), (sources, slot, hang_up)))
    });
    Ok(Sse::new(stream::StreamExt::chain(hello, follow)))
}

/// The filter, read.
#[derive(Clone, Copy)]
struct Only {
    volume: Option<VolumeId>,
    operation: Option<OperationId>,
}

impl Only {
    fn takes_volume(self, volume: VolumeId) -> bool {
        self.operation.is_none() && self.volume.is_none_or(|only| only == volume)
    }

    fn takes_operation(self, operation: &Operation) -> bool {
        self.operation.is_none_or(|only| only == operation.id)
            && self.volume.is_none_or(|only| Some(only) == operation.volume)
    }
}

/// Where the events come from.
struct Sources {
    volumes: Receiver<SharedEvent>,
    operations: Receiver<Arc<Operation>>,
    context: Context,
}

impl Sources {
    async fn next(&mut self, only: Only) -> Option<Event> {
        loop {
            let lagged = tokio::select! {
                event = self.volumes.recv() => match event {
                    Ok(event) if only.takes_volume(event.volume_id) => {
                        return Some(with(Event::default().event(VOLUME).id(event.id.to_string()), &view(&event)));
                    }
                    Ok(_) => continue,
                    Err(error) => error,
                },
                operation = self.operations.recv() => match operation {
                    Ok(operation) if only.takes_operation(&operation) => {
                        let view = operations::view(&self.context, &operation).await.ok()?;
                        return Some(with(Event::default().event(OPERATION), &view));
                    }
                    Ok(_) => continue,
                    Err(error) => error,
                },
            };
            return match lagged {
                RecvError::Lagged(missed) => Some(with(Event::default().event(MISSED), &Missed { missed })),
                RecvError::Closed => None,
            };
        }
    }
}

fn with(event: Event, data: &impl Serialize) -> Event {
    event.data(serde_json::to_string(data).unwrap_or_default())
}

fn view(event: &engine::Event) -> EventView {
    EventView {
        id: event.id,
        at: event.at,
        volume_id: event.volume_id,
        serial: event.serial,
        event: event.event.clone(),
        detail: event.detail.clone(),
        state: event.state,
        reason: event.reason.as_ref().map(ReasonView::from),
    }
}
