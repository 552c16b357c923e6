//! The stream of events (server-sent events). It has no keep-alives, so an idle daemon has no wake-ups, with or
//! without listeners.

use std::convert::Infallible;

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

use super::Ctx;
use super::body::QueryString;
use super::connection;
use super::error::ApiError;
use super::serve::Peer;
use super::volumes::long_request;
use crate::engine::{self, SharedEvent};
use crate::identity::VolumeId;
use crate::wire::{EventView, MISSED, Missed, ReasonView, VOLUME};

/// Which events to send.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct EventFilter {
    /// Only events of this volume.
    #[param(inline, value_type = Option<VolumeId>)]
    volume_id: Option<String>,
}

/// Sends what happens from now on: `volume` events, and `missed` if the listener was too slow.
#[utoipa::path(get, path = "/api/v1/events", operation_id = "followEvents", params(EventFilter), responses(
    (status = 200, body = EventView, content_type = "text/event-stream")))]
pub(super) async fn follow(
    State(context): Ctx,
    Extension(peer): Extension<Peer>,
    QueryString(filter): QueryString<EventFilter>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let only = filter.volume_id.as_deref().map(str::parse::<VolumeId>).transpose()?;
    let slot = long_request(&context, &peer)?;
    let events = context.inner.engine.events()?;
    peer.connection.carries_events();
    // The first line tells the listener that from now on no event is left out.
    let hello = stream::once(async { Ok(Event::default().comment("listening")) });
    let hang_up = peer.connection.watch();
    let follow = stream::unfold((events, slot, hang_up), move |(mut events, slot, hang_up)| async move {
        let event = connection::while_there(hang_up.as_ref(), next(&mut events, only)).await??;
        Some((Ok(event), (events, slot, hang_up)))
    });
    Ok(Sse::new(stream::StreamExt::chain(hello, follow)))
}

async fn next(events: &mut Receiver<SharedEvent>, only: Option<VolumeId>) -> Option<Event> {
    loop {
        return match events.recv().await {
            Ok(event) if only.is_none_or(|volume| volume == event.volume_id) => {
                Some(with(Event::default().event(VOLUME).id(event.id.to_string()), &view(&event)))
            }
            Ok(_) => continue,
            Err(RecvError::Lagged(missed)) => Some(with(Event::default().event(MISSED), &Missed { missed })),
            Err(RecvError::Closed) => None,
        };
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
