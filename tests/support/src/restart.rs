//! Every test proves a restart. When its daemon's handle is dropped, the daemon is stopped in order and started once
//! more on what is left, and must show the same world. A daemon that was killed must start and must still have every
//! volume that it accepted.
//!
//! A test for which this makes no sense says why: [`crate::Lab::not_restarted`].

use crate::api::Api;
use crate::attachd::Attachd;
use crate::shown::{self, Shown};
use crate::tables;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// The time limit for a world to come to rest, or to be the same again. It costs time only if something is wrong.
pub(crate) const REST: Duration = Duration::from_secs(10);

/// What the daemons of one lab share.
#[derive(Debug, Default)]
pub(crate) struct Lives {
    starts: AtomicU32,
    exempt: OnceLock<String>,
    lab_is_over: AtomicBool,
    answered: Answered,
}

impl Lives {
    /// Counts one more start and returns its number.
    pub(crate) fn begin(&self) -> u32 {
        self.starts.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Turns off the proof of a restart in this lab.
    pub(crate) fn exempt(&self, why: &str) {
        self.exempt.get_or_init(|| why.to_owned());
    }

    /// Notes that the lab ends.
    pub(crate) fn end(&self) {
        self.lab_is_over.store(true, Ordering::SeqCst);
    }

    pub(crate) fn answered(&self) -> &Answered {
        &self.answered
    }

    /// Returns whether this start must be followed by one more: only the last one of the lab.
    pub(crate) fn to_prove(&self, number: u32) -> bool {
        self.exempt.get().is_none() && self.starts.load(Ordering::SeqCst) == number
    }
}

/// The volumes that attachd has accepted.
#[derive(Debug, Default)]
pub(crate) struct Answered(Mutex<BTreeSet<String>>);

impl Answered {
    /// Notes a request before its answer: a volume that is being withdrawn may be gone from then on.
    pub(crate) fn asked(&self, method: &str, path: &str) {
        let path = path.split('?').next().unwrap_or_default();
        let mut parts = path.trim_start_matches('/').split('/');
        let volume = match (method, parts.next(), parts.next()) {
            ("DELETE", Some("api"), _) => path.rsplit('/').next(),
            ("POST", Some("kill-points"), Some("release")) => parts.next(),
            _ => None,
        };
        if let Some(volume) = volume {
            self.set().remove(&volume.to_lowercase());
        }
    }

    /// Notes an answer: an accepted volume must be kept.
    pub(crate) fn told(&self, method: &str, path: &str, status: u16, body: &Value) {
        let accepted = (method, path) == ("POST", "/api/v1/intents") && matches!(status, 200 | 201);
        if let Some(volume) = body["volume_id"].as_str().filter(|_| accepted) {
            self.set().insert(volume.to_owned());
        }
    }

    fn set(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Proves that a restart changes nothing: within `limit` after it everything is as before. `meanwhile` runs between
/// the two daemons.
pub(crate) fn proven(attachd: &mut Attachd, meanwhile: impl FnOnce(), limit: Duration) -> Result<()> {
    let lives = Arc::clone(attachd.lives());
    ensure!(
        !lives.lab_is_over.load(Ordering::SeqCst),
        "the lab has ended before its daemon, so nothing is left to restart it on: declare the lab first (in a struct: last)"
    );
    if attachd.has_ended()? {
        ensure!(attachd.was_ended(), "attachd has ended by itself; it said:\n{}", attachd.stderr_text());
        return holds_what_was_answered(attachd, &lives, meanwhile);
    }
    let before = at_rest(&attachd.api()).context("before the restart")?;
    let problems = shown::problems(&attachd.api())?;
    let status = attachd.terminate()?;
    ensure!(status.success(), "the daemon did not stop in order ({status}); it said:\n{}", attachd.stderr_text());
    let (held, stopped) = (before.resting(&before.folders), before.resting(&shown::folders()?));
    ensure!(stopped == held, "stopping the daemon has changed the folders, from {held:#?} to {stopped:#?}");
    tables::show(&before, &problems)?;
    meanwhile();
    let mut again = attachd.again().context("the daemon does not start on what its test has left")?;
    let result = same(&again.api(), &before, &problems, limit);
    result.with_context(|| format!("attachd said:\n{}", tail(&again.stderr_text())))?;
    let status = again.terminate()?;
    ensure!(status.success(), "the second stop: {status}");
    Ok(())
}

/// A daemon that has ended cannot be asked what it showed, so only the accepted volumes are compared.
fn holds_what_was_answered(attachd: &mut Attachd, lives: &Lives, meanwhile: impl FnOnce()) -> Result<()> {
    meanwhile();
    let mut again = attachd.again().context("the daemon does not start on what its test has left")?;
    let shown = at_rest(&again.api()).context("after the restart")?;
    let lost: Vec<_> =
        lives.answered.set().iter().filter(|volume| !shown.volumes.contains_key(*volume)).cloned().collect();
    ensure!(lost.is_empty(), "answered with success, and lost by a restart: {lost:?}; shown are:\n{shown}");
    let status = again.terminate()?;
    ensure!(status.success(), "the second stop: {status}");
    Ok(())
}

/// Returns what is shown after everything was read again, when no volume changes any more and no events come.
fn at_rest(api: &Api) -> Result<Shown> {
    let mut events = api.events()?;
    resync(api)?;
    let deadline = Instant::now() + REST;
    loop {
        let shown = Shown::by(api)?;
        // Reading takes several requests. They show one moment if no event came in between.
        let moving = shown.moving();
        let left = if moving.is_some() { deadline.saturating_duration_since(Instant::now()) } else { Duration::ZERO };
        match (events.next(left)?, moving) {
            (None, None) => return Ok(shown),
            (None, Some(moving)) => bail!("{moving} does not come to rest within {REST:?}:\n{shown}"),
            (Some(_), _) => {}
        }
    }
}

fn resync(api: &Api) -> Result<()> {
    api.post("/api/v1/resync", &json!({}))?.expect(200).context("a resync").map(drop)
}

/// Checks that the same is shown as before, also after everything is read once more.
fn same(api: &Api, before: &Shown, problems: &BTreeSet<String>, limit: Duration) -> Result<()> {
    same_again(api, before, limit)?;
    resync(api)?;
    same_again(api, before, limit)?;
    let now = shown::problems(api)?;
    ensure!(now == *problems, "after a restart health tells of {now:?}, and told of {problems:?} before");
    Ok(())
}

/// Waits until the same is shown as before.
fn same_again(api: &Api, before: &Shown, limit: Duration) -> Result<()> {
    let mut events = api.events()?;
    let deadline = Instant::now() + limit;
    loop {
        let after = Shown::by(api)?;
        let Some(difference) = before.difference(&after) else { return Ok(()) };
        let left = deadline.saturating_duration_since(Instant::now());
        if events.next(left)?.is_none() {
            bail!("after a restart attachd shows something else:\n{difference}");
        }
    }
}

/// The end of a long text.
fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
