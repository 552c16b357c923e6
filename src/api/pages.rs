//! Lists of what there may be very many of: read a page in each turn of the engine, and written on a thread of their own, so
//! that nobody waits for a long list but who asked for it. A volume is listed as it was when its page was read: one that comes
//! or goes meanwhile may be in the list or not.

use std::sync::Arc;

use axum::Json;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::error::ApiError;
use crate::blocking::blocking;
use crate::engine::world::{Volume, World};
use crate::engine::{Handle, Stopping};

/// Volumes looked at in one turn of the engine.
const PAGE: usize = 256;

/// What `pick` makes of the volumes, by id.
pub(super) async fn volumes<T: Send + 'static>(
    engine: &Handle,
    pick: impl Fn(&World, &Volume) -> Option<T> + Send + Sync + 'static,
) -> Result<Vec<T>, Stopping> {
    let pick = Arc::new(pick);
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let pick = Arc::clone(&pick);
        let page = move |world: &World| {
            let (mut picked, mut last) = (Vec::new(), None);
            for (n, volume) in world.volumes_after(after).take(PAGE).enumerate() {
                picked.extend(pick(world, volume));
                last = (n + 1 == PAGE).then_some(volume.intent.volume);
            }
            (picked, last)
        };
        let (picked, last) = engine.read(page).await?;
        all.extend(picked);
        match last {
            Some(_) => after = last,
            None => return Ok(all),
        }
    }
}

/// An answer with so many items, made where it keeps nobody waiting.
pub(super) async fn json<T: Serialize>(
    items: usize,
    make: impl FnOnce() -> T + Send + 'static,
) -> Result<Response, ApiError> {
    if items <= PAGE {
        return Ok(Json(make()).into_response());
    }
    let written = blocking(move || serde_json::to_vec(&make())).await;
    let written = written.and_then(|written| written.map_err(Into::into));
    let bytes =
        written.map_err(|error| ApiError::failed_for_now(format!("the list cannot be written: {error}; ask again")))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], bytes).into_response())
}
