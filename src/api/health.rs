//! Reports the present state of each part. "unknown" is a possible state.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;

use super::{Context, Ctx};
use crate::blocking::blocking;
use crate::clock;
use crate::config::{ServerSettings, Settings};
use crate::device::monitor::SocketStats;
use crate::engine::telling::NotTold;
use crate::engine::udevd::Udevd;
use crate::engine::world::{Resyncs, World};
use crate::export::backend::Check;
use crate::export::server::Server;
use crate::folder::Names;
use crate::reason::{Code, SaidAt};
use crate::reload::InUse;
use crate::store::{Following, Progress, Pulse};
use crate::volume::State as VolumeState;
use crate::wire::{
    BackendHealth, BackendState, Health, HealthProblem, HealthStatus, HelperHealth, HelperState, MonitorHealth,
    ProjectionHealth, Remark, ResyncHealth, SocketHealth, StoreHealth, StoreState, UdevdHealth, UdevdState,
};

/// The time limit for the NBD server's answer, after which health reports that it does not answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// How long projection rows may be late before health reports it.
const BEHIND: Duration = Duration::from_secs(10);

/// One problem that an operator should look at.
struct Problem {
    code: Code,
    message: String,
    hint: Cow<'static, str>,
}

impl Problem {
    /// Makes a problem with the hint of its code.
    fn new(code: Code, message: String) -> Self {
        debug_assert!(!code.hint().contains("{}"), "{code} is about something: Problem::about");
        Self::hinted(code, message, code.hint())
    }

    /// Makes a problem with a code whose hint names the NBD server's unit.
    fn about(code: Code, settings: &Settings, message: String) -> Self {
        Self::hinted(code, message, code.hint_about(settings.export.server.unit()))
    }

    fn hinted(code: Code, message: String, hint: impl Into<Cow<'static, str>>) -> Self {
        debug_assert!(code.is_of_health(), "{code} is no problem of health");
        Self { code, message, hint: hint.into() }
    }

    /// Returns whether no intent can be accepted until the problem is solved.
    fn is_grave(&self) -> bool {
        self.code.is_said(SaidAt::Unhealthy)
    }
}

impl From<Problem> for HealthProblem {
    fn from(Problem { code, message, hint }: Problem) -> Self {
        Self { code: code.into(), message, hint }
    }
}

/// Reports the state of each part.
#[utoipa::path(get, path = "/api/v1/health", operation_id = "showHealth", responses((status = 200, body = Health), (status = 503, body = Health)))]
pub(super) async fn show(State(context): Ctx) -> Response {
    let health = health(&context).await;
    let status =
        if health.status == HealthStatus::Unhealthy { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (status, Json(health)).into_response()
}

/// A snapshot of what the engine knows.
#[derive(Default)]
struct Snapshot {
    volumes: BTreeMap<VolumeState, usize>,
    server: Option<Server>,
    /// How long the server has been asked without an answer.
    asking_for: Option<Duration>,
    helper: Option<Result<(), String>>,
    udevd: Udevd,
    /// Disks at which udevd is held up, and since when.
    held_up: Vec<(String, Timestamp)>,
    resyncs: Resyncs,
    foreign: Names,
    /// Why the folder of exports is not as it must be, if so.
    exports: Option<String>,
    foreign_claims: Names,
    /// Why the folder of claims is not as it must be, if so.
    claims: Option<String>,
    /// Why exports that should be removed may still be there.
    stuck: Names,
    not_told: Option<NotTold>,
    /// Disks that could not be read, with the reason.
    unread: Vec<String>,
    /// Why recorded volumes are not served; without those that only wait for the NBD server.
    not_served: Vec<String>,
}

impl Snapshot {
    fn of(world: &World) -> Self {
        Self {
            volumes: world.counts().clone(),
            server: world.server.clone(),
            asking_for: world.handshakes.asking_for(Instant::now()),
            helper: world.helper.state(),
            udevd: world.ear.udevd_is(),
            held_up: world.held_up(),
            resyncs: world.resyncs.clone(),
            foreign: world.exported.foreign.clone(),
            exports: world.exported.failed.clone(),
            foreign_claims: world.claimed.foreign.clone(),
            claims: world.claimed.failed.clone(),
            stuck: world.stuck_exports(),
            not_told: world.telling.failed.clone(),
            unread: unread(world),
            not_served: not_served(world),
        }
    }
}

async fn health(context: &Context) -> Health {
    let in_use = context.in_use();
    let settings = &in_use.settings;
    // The server is asked now, so that its state is current. If it does not answer in time, health says so.
    let asked = tokio::time::timeout(ANSWER_LIMIT, context.inner.engine.ask_server()).await;
    let seen = context.inner.engine.read(Snapshot::of).await;
    let stopping = seen.is_err();
    let mut seen = seen.unwrap_or_default();
    if asked.is_err() {
        // The engine may have sent its request a moment after this function started to wait.
        seen.asking_for = Some(seen.asking_for.unwrap_or_default().max(ANSWER_LIMIT));
    }
    let pulse = context.inner.store.pulse().await;
    let backend_files = Arc::clone(&context.inner.backend);
    let files = blocking(move || backend_files.check()).await;
    let files = files.unwrap_or_else(|error| Check {
        refused: Some(format!("they cannot be checked: {error}")),
        ..Check::default()
    });
    let mut problems = problems(&seen, &pulse, &files, settings);
    problems.extend(of_configuration(&in_use, context.inner.checks.tls_trouble()));
    let access = context.inner.cloud.as_ref().zip(settings.cloudstack.as_ref());
    let cloud = access.map(|(access, settings)| super::cloud::health(access, settings));
    let of_cloud = access.map(|(access, settings)| super::cloud::problems(access, settings)).unwrap_or_default();
    problems.extend(of_cloud.into_iter().map(|(code, message)| Problem::new(code, message)));
    let (operations, late) = super::operations::health(context).await;
    problems.extend(late.map(|(code, message)| Problem::new(code, message)));
    problems.extend(context.inner.listeners.problems().into_iter().map(|(code, message)| Problem::new(code, message)));
    if stopping {
        let message = "the engine does not run: attachd is stopping".to_owned();
        problems.push(Problem::new(Code::Stopping, message));
    }
    let status = if problems.iter().any(Problem::is_grave) {
        HealthStatus::Unhealthy
    } else if problems.is_empty() {
        HealthStatus::Healthy
    } else {
        HealthStatus::Degraded
    };
    let (udevd_state, since) = match seen.udevd {
        Udevd::Unknown => (UdevdState::Unknown, None),
        Udevd::Heard(at) => (UdevdState::Heard, Some(at)),
        Udevd::Silent(at) => (UdevdState::Silent, Some(at)),
    };
    let store = store(&pulse);
    Health {
        status,
        timestamp: clock::wall(),
        version: env!("CARGO_PKG_VERSION").into(),
        started_at: context.inner.started,
        problems: problems.into_iter().map(HealthProblem::from).collect(),
        remarks: remarks(files, &in_use),
        monitor: MonitorHealth {
            udev: socket(&context.inner.monitor.udev),
            kernel: socket(&context.inner.monitor.kernel),
        },
        udevd: UdevdHealth { state: udevd_state, since },
        resync: ResyncHealth {
            count: seen.resyncs.count,
            last_reason: seen.resyncs.last_reason.into(),
            last_at: seen.resyncs.last_at,
            losses: seen.resyncs.losses,
        },
        database_health: store.error.as_ref().map_or("healthy".to_owned(), |error| format!("unhealthy: {error}")),
        store,
        projection: pulse.followers.into_iter().map(projection).collect(),
        backend: backend(seen.server, settings),
        helper: match seen.helper {
            None => HelperHealth { state: HelperState::Unknown, why: None },
            Some(Ok(())) => HelperHealth { state: HelperState::Answers, why: None },
            Some(Err(why)) => HelperHealth { state: HelperState::Silent, why: Some(why) },
        },
        listeners: context.inner.listeners.listeners.clone(),
        cloudstack_health: super::cloud::in_short(cloud.as_ref()),
        cloud,
        operations,
        volumes: seen.volumes,
        service: "volume-management-daemon".into(),
        device_monitor: match udevd_state {
            UdevdState::Silent => "unhealthy: udevd is silent".into(),
            UdevdState::Heard | UdevdState::Unknown => "healthy".into(),
        },
    }
}

fn store(pulse: &Pulse) -> StoreHealth {
    let error = pulse.failure.as_ref().map(ToString::to_string);
    let state = if error.is_none() { StoreState::Ok } else { StoreState::Failing };
    StoreHealth { state, error }
}

fn projection(following: Following) -> ProjectionHealth {
    let Following { name, owed, progress, .. } = following;
    let Progress { behind_since, failure, .. } = progress;
    let (refused, owed) = (owed.map(|owed| owed.set_aside), owed.map(|owed| owed.records));
    ProjectionHealth { target: name.into(), owed, behind_since, refused, error: failure }
}

/// Reports whether the predecessor's tables have been out of date for longer than a moment.
fn of_projection(following: &Following, now: Timestamp) -> Vec<Problem> {
    let Following { name, follows, owed, progress } = following;
    let record = follows.word();
    let mut problems = Vec::new();
    let unknown = "an unknown number of".to_owned();
    let (owed, refused) =
        owed.map_or((unknown.clone(), unknown), |owed| (owed.records.to_string(), owed.set_aside.to_string()));
    let since = progress.behind_since;
    if progress.failure.is_some() || since.is_some_and(|since| now.duration_since(since).unsigned_abs() >= BEHIND) {
        let since = since.map_or(String::new(), |since| format!(", since {since}"));
        let why = progress.failure.as_ref().map_or(String::new(), |why| format!(": {why}"));
        let message = format!("the target {name} does not show {owed} {record}(s) as they are now{since}{why}");
        problems.push(Problem::new(Code::ProjectionBehind, message));
    }
    if let Some((id, why)) = &progress.example {
        let message =
            format!("the target {name} does not take the rows of {refused} {record}(s); one of them: {id}: {why}");
        problems.push(Problem::new(Code::ProjectionRefused, message));
    }
    problems
}

fn problems(seen: &Snapshot, store: &Pulse, files: &Check, settings: &Settings) -> Vec<Problem> {
    let mut problems = Vec::new();
    problems.extend(server_problem(seen, settings));
    if let Some(failure) = &store.failure {
        problems.push(Problem::hinted(
            failure.code(),
            format!("{failure}; until then no intent is accepted"),
            failure.hint(),
        ));
    }
    problems.extend(store.followers.iter().flat_map(|following| of_projection(following, clock::wall())));
    if let Some(copy) = store.saved.first() {
        let message =
            format!("a store was lost while attachd ran, and what was on record then is in {}", copy.display());
        problems.push(Problem::new(Code::StoreSaved, message));
    }
    if let Some(why) = &files.refused {
        let message = format!("the NBD server would refuse its files: {why}");
        problems.push(Problem::new(Code::ServerFiles, message));
    }
    if let Some(NotTold::Helper(why)) = &seen.not_told {
        let message = format!("the NBD server could not be signalled to read new exports: {why}");
        problems.push(Problem::about(Code::ServerNotTold, settings, message));
    }
    if let Some(Err(why)) = &seen.helper {
        problems.push(Problem::new(Code::HelperSilent, why.clone()));
    }
    if is_insecure(settings) {
        let message = format!("exports are served on {} without TLS (insecure = true)", settings.export.listen);
        problems.push(Problem::new(Code::Insecure, message));
    }
    if let Some(first) = seen.not_served.first() {
        let message =
            format!("{} volume(s) with a proven disk cannot be served; one of them: {first}", seen.not_served.len());
        problems.push(Problem::new(Code::ExportsFailing, message));
    }
    let standing = [
        (VolumeState::Refused, Code::VolumesRefused, "have a disk that fails a check"),
        (VolumeState::Lost, Code::VolumesLost, "were served, and their disk is gone"),
        (VolumeState::Expired, Code::VolumesExpired, "waited for a disk past their deadline"),
    ];
    for (state, code, what) in standing {
        if let Some(count) = seen.volumes.get(&state).filter(|count| **count > 0) {
            problems.push(Problem::new(code, format!("{count} volume(s) {what}")));
        }
    }
    problems.extend(of_disks(seen));
    problems.extend(of_folders(seen, settings));
    problems
}

/// Reports what is wrong with attachd's folders.
fn of_folders(seen: &Snapshot, settings: &Settings) -> Vec<Problem> {
    let mut problems = Vec::new();
    if !seen.foreign.is_empty() {
        let names = &seen.foreign;
        let message = format!("the NBD server's folders hold files that attachd did not make: {names}");
        problems.push(Problem::about(Code::ForeignExports, settings, message));
    }
    if !seen.foreign_claims.is_empty() {
        let (folder, names) = (settings.store.claims.display(), &seen.foreign_claims);
        let message = format!("{folder} holds files that are not claims of attachd's: {names}");
        problems.push(Problem::new(Code::ForeignClaims, message));
    }
    if let Some(why) = &seen.claims {
        let message = format!("the folder of claims is not as it must be: {why}");
        problems.push(Problem::new(Code::ClaimsFolder, message));
    }
    if let Some(why) = &seen.exports {
        let message = format!("nothing can be exported: {why}");
        problems.push(Problem::new(Code::ExportFolder, message));
    }
    if !seen.stuck.is_empty() {
        let message = format!("exports cannot be taken away ({}): {}", seen.stuck.count(), seen.stuck);
        problems.push(Problem::about(Code::ExportStuck, settings, message));
    }
    problems
}

/// Reports why disk events do not arrive or disks cannot be read.
fn of_disks(seen: &Snapshot) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let Udevd::Silent(since) = seen.udevd {
        let message = format!("udevd has not sent the event of a disk since {since}");
        problems.push(Problem::new(Code::UdevdSilent, message));
    } else if let Some((first, since)) = seen.held_up.first() {
        let count = seen.held_up.len();
        let message = format!(
            "udevd is held up at {count} disk(s), and served others meanwhile; the first: {first}, since {since}"
        );
        problems.push(Problem::new(Code::UdevdHeldUp, message));
    }
    if let Some(first) = seen.unread.first() {
        let message = format!("{} disk(s) cannot be read; one of them: {first}", seen.unread.len());
        problems.push(Problem::new(Code::DisksUnread, message));
    }
    problems
}

fn unread(world: &World) -> Vec<String> {
    let mut all: Vec<_> = world.table.all_unread().collect();
    all.sort_unstable();
    let name = |devnum| world.table.of(devnum).map(|device| format!("/dev/{} ", device.facts.name)).unwrap_or_default();
    all.into_iter().map(|(devnum, why)| format!("{}({devnum}): {why}", name(devnum))).collect()
}

/// Reports that the NBD server does not serve, or that its state is unknown.
fn server_problem(seen: &Snapshot, settings: &Settings) -> Option<Problem> {
    let unanswered = seen.asking_for.filter(|asking| *asking >= ANSWER_LIMIT);
    let message = match (&seen.server, unanswered) {
        (Some(server @ (Server::Down { .. } | Server::Silent { .. })), _) => server.to_string(),
        (None, Some(_)) => "it could not be determined in time whether the NBD server runs".to_owned(),
        (Some(Server::Up { .. }), Some(asking)) => {
            format!(
                "the NBD server has not answered a handshake on {} for {} s",
                settings.export.listen,
                asking.as_secs()
            )
        }
        _ => return None,
    };
    Some(Problem::about(Code::BackendDown, settings, message))
}

fn not_served(world: &World) -> Vec<String> {
    let failing = world.volumes().filter(|volume| volume.state == VolumeState::Exporting);
    let reasons = failing.filter_map(|volume| volume.reason.as_ref()).filter(|reason| reason.code != Code::BackendDown);
    reasons.map(|reason| format!("{}: {}", reason.code, reason.message)).collect()
}

/// Reports a configuration in use that differs from the configuration file.
fn of_configuration(in_use: &InUse, tls: Option<String>) -> impl Iterator<Item = Problem> {
    let invalid = in_use.invalid.as_ref().map(|invalid| {
        let message = format!("the configuration has a mistake, so the old one stays in use: {invalid}");
        (Code::ConfigInvalid, message)
    });
    let tls = tls
        .map(|why| (Code::TlsFiles, format!("changed TLS files cannot be used, so the old ones stay in use: {why}")));
    invalid.into_iter().chain(tls).map(|(code, message)| Problem::new(code, message))
}

/// Remarks about this nbd-server's version and files, and about changes that need a restart.
fn remarks(files: Check, in_use: &InUse) -> Vec<Remark> {
    let mut remarks = Vec::new();
    if !in_use.at_restart.is_empty() {
        let keys = in_use.at_restart.join(", ");
        let message =
            format!("the configuration has changes that need a restart of attachd (exports stay served): {keys}");
        remarks.push(Remark { code: Code::RestartNeeded.into(), message });
    }
    let ServerSettings::NbdServer { chosen, .. } = &in_use.settings.export.server else { return remarks };
    remarks.push(Remark {
        code: Code::WriteZeroes.into(),
        message: "nbd-server zeroes only the first 64 MiB of a larger request to write zeroes and reports success \
                  (nbdcopy sends such requests): do not use its exports as nbdcopy's destination unless the disk is blank"
            .to_owned(),
    });
    remarks.extend(chosen.advice.clone().map(|message| Remark { code: Code::ServerVersion.into(), message }));
    remarks.extend(files.remarks.into_iter().map(|message| Remark { code: Code::ServerFiles.into(), message }));
    remarks
}

fn backend(server: Option<Server>, settings: &Settings) -> BackendHealth {
    let chosen = match &settings.export.server {
        ServerSettings::Nbdkit => None,
        ServerSettings::NbdServer { chosen, .. } => Some(chosen),
    };
    let (state, pid, why) = match server {
        None => (BackendState::Unknown, None, None),
        Some(Server::Up { pid }) => (BackendState::Up, pid, None),
        Some(Server::Silent { pid, why }) => (BackendState::Silent, pid, Some(why)),
        Some(Server::Down { why }) => (BackendState::Down, None, Some(why)),
    };
    BackendHealth {
        name: settings.export.server.name().into(),
        mode: chosen.map(|chosen| chosen.mode.into()),
        because: chosen.map(|chosen| chosen.because.clone()),
        state,
        pid,
        why,
        listen: settings.export.listen.to_string(),
        insecure: is_insecure(settings),
    }
}

/// Returns whether other hosts can reach the exports without encryption.
fn is_insecure(settings: &Settings) -> bool {
    !settings.export.listen.ip().is_loopback() && settings.export.tls.is_none()
}

fn socket(stats: &SocketStats) -> SocketHealth {
    SocketHealth {
        events: stats.events.load(Ordering::Relaxed),
        overruns: stats.overruns.load(Ordering::Relaxed),
        drops: stats.drops(),
        receive_buffer_bytes: stats.receive_buffer,
    }
}

/// Counts the volumes in each state, by the state's name.
pub(super) fn counts(world: &World) -> BTreeMap<&'static str, usize> {
    world.counts().iter().map(|(state, count)| (state.as_str(), *count)).collect()
}
