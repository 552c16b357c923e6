//! Lists that may be very long. The engine gives one page of volumes per turn, each as it is shown then and shared, not
//! copied; a thread of its own makes and writes the list, one list at a time, so that a long list delays only its own
//! caller. Each volume is listed as it was when its page was read. A volume that comes or goes in the meantime may be in
//! the list or not.

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

/// The number of volumes that are read in one turn of the engine. What is picked of each has to be quick.
const PAGE: usize = 128;

/// A list of at most so many volumes needs no thread.
const SHORT: usize = 32;

/// The nice value of a thread that writes a list, so that everything else goes first.
const NICE: i32 = 15;

/// Makes one list at a time: several at once would take processor time from disks that arrive.
static ONE_AT_A_TIME: Semaphore = Semaphore::const_new(1);

/// Returns what `pick` makes of each volume, ordered by id.
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

/// Answers with a list: `make` gets what `pick` made of each volume, ordered by id.
pub(super) async fn list<T: Send + 'static, L: Serialize>(
    engine: &Handle,
    pick: impl Fn(&World, &Volume) -> Option<T> + Send + Sync + 'static,
    make: impl FnOnce(Vec<T>) -> L + Send + 'static,
) -> Result<Response, ApiError> {
    // The semaphore is never closed.
    let turn = ONE_AT_A_TIME.acquire().await.ok();
    let all = volumes(engine, pick).await?;
    if all.len() <= SHORT {
        return Ok(Json(make(all)).into_response());
    }
    let written = blocking(move || {
        // This affects only the current thread. If it is refused, only speed changes.
        let _ = rustix::process::nice(NICE);
        let written = serde_json::to_vec(&make(all));
        // Also a caller who does not wait for the list keeps the turn until it is made.
        drop(turn);
        written
    });
    let bytes = written
        .await
        .and_then(|written| written.map_err(Into::into))
        .map_err(|error| ApiError::failed_for_now(format!("the list cannot be written: {error}; ask again")))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], bytes).into_response())
}
