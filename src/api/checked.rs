//! Checks what clients would get: reads the NBD server's own list and opens each export once.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::Context;
use super::error::ApiError;
use super::pages;
use crate::config::ServerSettings;
use crate::engine::Stopping;
use crate::engine::world::{Volume, World};
use crate::export::nbd_server::mode::Mode;
use crate::export::probe::{self, Endpoint, ProbeError};
use crate::identity::VolumeId;
use crate::volume::State;
use crate::wire::CheckedExport;

/// The time limit of one check, the server's list included. It is less than half of attachctl's timeout, because a
/// caller that asks during a check waits for the next one. A server that is started for each connection needs up to a
/// second per export, and more on a slow host.
const LIMIT: Duration = Duration::from_secs(12);

/// The export without which nbd-server would not start if there are no others.
const PLACEHOLDER: &str = "attachd-placeholder";

/// Whether an export is published, and whether it should be.
#[derive(Clone, Copy)]
struct Expectation {
    published: bool,
    due: bool,
}

impl Expectation {
    fn of(volume: &Volume) -> Self {
        let due = matches!(volume.state, State::Ready | State::Exporting);
        Self { published: volume.published, due }
    }
}

/// Runs one check at a time, for all callers that ask.
pub(super) struct Checks {
    server: Endpoint,
    asked: Mutex<Callers>,
}

#[derive(Default)]
struct Callers {
    /// A check is running.
    running: bool,
    /// The callers that have asked since the running check began.
    waiting: Vec<oneshot::Sender<Vec<CheckedExport>>>,
}

impl Checks {
    pub(super) fn of(server: &Endpoint) -> Self {
        Self { server: server.for_checks(), asked: Mutex::default() }
    }

    /// Returns why changed TLS files cannot be used, if so.
    pub(super) fn tls_trouble(&self) -> Option<String> {
        self.server.tls_trouble()
    }

    fn asked(&self) -> MutexGuard<'_, Callers> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the callers of the next check. If there are none, no check is running any more.
    fn next(&self) -> Vec<oneshot::Sender<Vec<CheckedExport>>> {
        let mut asked = self.asked();
        let waiting = std::mem::take(&mut asked.waiting);
        asked.running = !waiting.is_empty();
        waiting
    }
}

/// Checks every export that is published, should be published, or is listed by the server.
pub(super) async fn exports(context: &Context) -> Result<Vec<CheckedExport>, ApiError> {
    let (reply, answer) = oneshot::channel();
    let begins = {
        let mut asked = context.inner.checks.asked();
        asked.waiting.push(reply);
        !std::mem::replace(&mut asked.running, true)
    };
    if begins {
        // The check runs in a task of its own, so that it goes on for the other callers when this client hangs up.
        tokio::spawn(check_for_all(context.clone()));
    }
    answer.await.map_err(|_| Stopping.into())
}

async fn check_for_all(context: Context) {
    loop {
        let waiting = context.inner.checks.next();
        if waiting.is_empty() {
            return;
        }
        // A check that panics answers no caller; the next check still runs.
        let checked = AssertUnwindSafe(check(&context)).catch_unwind().await;
        if let Ok(Ok(checked)) = checked {
            for reply in waiting {
                let _ = reply.send(checked.clone());
            }
        }
    }
}

async fn check(context: &Context) -> Result<Vec<CheckedExport>, Stopping> {
    let pick = |_: &World, volume: &Volume| Some((volume.intent.volume, Expectation::of(volume)));
    let wanted: BTreeMap<VolumeId, Expectation> =
        pages::volumes(&context.inner.engine, pick).await?.into_iter().collect();
    let server = &context.inner.checks.server;
    let deadline = Instant::now() + LIMIT;
    let listed = timeout_at(deadline, probe::list(server)).await.ok();
    let mut server_fails = matches!(listed, Some(Err(_)));
    let listed = listed.and_then(Result::ok).flatten();
    let listed: Option<BTreeSet<String>> = listed.map(BTreeSet::from_iter);
    let shown = wanted.iter().filter(|(_, wanted)| wanted.published || wanted.due);
    let mut names: BTreeSet<String> = shown.map(|(volume, _)| volume.export_name()).collect();
    names.extend(listed.iter().flatten().filter(|name| *name != PLACEHOLDER).cloned());
    let mut answers = open_all(server, &names, deadline).await;
    // A volume whose export a client would not get is not `ready`.
    let failed = answers.iter().filter_map(|(name, answer)| Some((name, answer.as_ref().err()?)));
    let mut doubted = Vec::new();
    for (name, error) in failed {
        server_fails |= error.is_server();
        doubted.extend(
            VolumeId::from_export_name(name).filter(|volume| wanted.get(volume).is_some_and(|wanted| wanted.published)),
        );
    }
    if server_fails || !doubted.is_empty() {
        context.inner.engine.doubt(doubted, server_fails).await?;
    }
    let clear = match &context.in_use().settings.export.server {
        ServerSettings::Nbdkit => "remove it from the folder of exports",
        ServerSettings::NbdServer { chosen, .. } if chosen.mode == Mode::Signal => {
            "systemctl restart attachd-nbd-server (connected clients stay)"
        }
        ServerSettings::NbdServer { .. } => "remove its file from the server's folder",
    };
    let checked = names.into_iter().map(|name| {
        let volume_id = VolumeId::from_export_name(&name);
        let state = volume_id.and_then(|volume| wanted.get(&volume));
        let listed = listed.as_ref().map(|listed| listed.contains(&name));
        let stale = listed == Some(true) && state.is_none();
        let answer = answers.remove(&name);
        CheckedExport {
            volume_id,
            wanted: state.is_some(),
            published: state.is_some_and(|wanted| wanted.published),
            due: state.is_some_and(|wanted| wanted.due),
            listed,
            openable: answer.as_ref().map(Result::is_ok),
            why: answer.and_then(Result::err).map(|error| error.to_string()),
            stale,
            clear: stale.then(|| clear.into()),
            name,
        }
    });
    Ok(checked.collect())
}

/// Opens each export once. An export that is not reached before the deadline has no result.
async fn open_all(
    server: &Endpoint,
    names: &BTreeSet<String>,
    deadline: Instant,
) -> BTreeMap<String, Result<(), ProbeError>> {
    let mut asking = JoinSet::new();
    for name in names.iter().cloned() {
        let server = server.clone();
        asking.spawn(async move {
            let answer = async { probe::probe(probe::greet(&server).await?, &name).await }.await;
            (name, answer.map(drop))
        });
    }
    let mut answers = BTreeMap::new();
    let collect = async {
        while let Some(answer) = asking.join_next().await {
            answers.extend(answer);
        }
    };
    let _ = timeout_at(deadline, collect).await;
    answers
}
