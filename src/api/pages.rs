//! Lists of what there may be very many of: read a page in each turn of the engine, and written on a thread of their own, one
//! list at a time, so that nobody waits for a long list but who asked for one. A volume is listed as it was when its page was read: one that comes
//! or goes meanwhile may be in the list or not.

use std::sync::Arc;

use axum::Json;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::Semaphore;

use super::error::ApiError;
use crate::blocking::blocking;
use crate::engine::world::{Volume, World};
use crate::engine::{Handle, Stopping};

/// Volumes looked at in one turn of the engine.
const PAGE: usize = 64;

/// What writes a list gives way to everything else.
const NICE: i32 = 15;

/// Long lists are made one after the other: all at once they would take the processors from the disks that come.
static ONE_AT_A_TIME: Semaphore = Semaphore::const_new(1);

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

/// A list as an answer: `make` gets what `pick` makes of the volumes, by id.
pub(super) async fn list<T: Send + 'static, L: Serialize>(
    engine: &Handle,
    pick: impl Fn(&World, &Volume) -> Option<T> + Send + Sync + 'static,
    make: impl FnOnce(Vec<T>) -> L + Send + 'static,
) -> Result<Response, ApiError> {
    // It is never closed.
    let _turn = ONE_AT_A_TIME.acquire().await.ok();
    let all = volumes(engine, pick).await?;
    if all.len() <= PAGE {
        return Ok(Json(make(all)).into_response());
    }
    let written = blocking(move || {
        // Of this thread alone. That it is not granted changes nothing but speed.
        let _ = rustix::process::nice(NICE);
        serde_json::to_vec(&make(all))
    });
    let bytes = written
        .await
        .and_then(|written| written.map_err(Into::into))
        .map_err(|error| ApiError::failed_for_now(format!("the list cannot be written: {error}; ask again")))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], bytes).into_response())
}
