//! What is true now about each part. "unknown" is an answer.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

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
use crate::engine::tell::NotTold;
use crate::engine::udevd::Udevd;
use crate::engine::world::{Resyncs, World};
use crate::export::backend::Check;
use crate::export::server::Server;
use crate::folder::Names;
use crate::reason::Code;
use crate::reload::InUse;
use crate::store::Pulse;
use crate::volume::State as VolumeState;
use crate::wire::{
    BackendHealth, BackendState, Health, HealthProblem, HealthStatus, HelperHealth, HelperState, MonitorHealth, Remark,
    ResyncHealth, SocketHealth, StoreHealth, StoreState, UdevdHealth, UdevdState,
};

/// How long the NBD server may take to answer before health says that it does not.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// One thing that needs a look. `grave`: no intent can be accepted until it is over.
struct Problem {
    code: &'static str,
    message: String,
    hint: Cow<'static, str>,
    grave: bool,
}

impl From<Problem> for HealthProblem {
    fn from(Problem { code, message, hint, .. }: Problem) -> Self {
        Self { code: code.into(), message, hint }
    }
}

/// Tells the truth about each part.
#[utoipa::path(get, path = "/api/v1/health", operation_id = "showHealth", responses((status = 200, body = Health), (status = 503, body = Health)))]
pub(super) async fn show(State(context): Ctx) -> Response {
    let health = health(&context).await;
    let status =
        if health.status == HealthStatus::Unhealthy { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (status, Json(health)).into_response()
}

/// What the engine knows, copied at one moment.
#[derive(Default)]
struct Seen {
    volumes: BTreeMap<VolumeState, usize>,
    server: Option<Server>,
    /// How long the server has been asked without an answer.
    asking_for: Option<Duration>,
    helper: Option<Result<(), String>>,
    udevd: Udevd,
    /// Disks that udevd is held up at, and since when.
    held_up: Vec<(String, Timestamp)>,
    resyncs: Resyncs,
    foreign: Names,
    /// Why the folder of exports is not what it has to be.
    exports: Option<String>,
    foreign_claims: Names,
    /// Why the folder of claims is not what it has to be.
    claims: Option<String>,
    /// Why exports that should be gone may still be there.
    stuck: Names,
    not_told: Option<NotTold>,
    /// Disks that could not be read, and why.
    unread: Vec<String>,
    /// Why volumes on record are not served, those apart that only wait for the NBD server.
    not_served: Vec<String>,
}

impl Seen {
    fn of(world: &World) -> Self {
        Self {
            volumes: world.counts().clone(),
            server: world.server.clone(),
            asking_for: world.handshakes.asking_for(),
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
    // What is said of the NBD server is of now. One that does not answer in time is told so.
    let _ = tokio::time::timeout(ANSWER_LIMIT, context.inner.engine.ask_server()).await;
    let seen = context.inner.engine.read(Seen::of).await;
    let stopping = seen.is_err();
    let seen = seen.unwrap_or_default();
    let pulse = context.inner.store.pulse().await;
    let backend_files = Arc::clone(&context.inner.backend);
    let files = blocking(move || backend_files.check()).await;
    let files = files.unwrap_or_else(|error| Check {
        refused: Some(format!("they cannot be checked: {error}")),
        ..Check::default()
    });
    let mut problems = problems(&seen, &pulse, &files, settings);
    problems.extend(of_configuration(&in_use, context.inner.checks.tls_trouble()));
    if stopping {
        let message = "the engine does not run: attachd is stopping".to_owned();
        problems.push(Problem {
            code: "STOPPING",
            message,
            hint: "Ask again when it has started.".into(),
            grave: true,
        });
    }
    let status = if problems.iter().any(|problem| problem.grave) {
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
    let store = store(pulse);
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
        backend: backend(seen.server, settings),
        helper: match seen.helper {
            None => HelperHealth { state: HelperState::Unknown, why: None },
            Some(Ok(())) => HelperHealth { state: HelperState::Answers, why: None },
            Some(Err(why)) => HelperHealth { state: HelperState::Silent, why: Some(why) },
        },
        volumes: seen.volumes,
        service: "volume-management-daemon".into(),
        cloudstack_health: "unknown".into(),
        device_monitor: match udevd_state {
            UdevdState::Silent => "unhealthy: udevd is silent".into(),
            UdevdState::Heard | UdevdState::Unknown => "healthy".into(),
        },
    }
}

fn store(pulse: Pulse) -> StoreHealth {
    let error = pulse.failure.map(|failure| failure.to_string());
    let state = if error.is_none() { StoreState::Ok } else { StoreState::Failing };
    StoreHealth { state, error, outbox: pulse.outbox }
}

fn problems(seen: &Seen, store: &Pulse, files: &Check, settings: &Settings) -> Vec<Problem> {
    let mut problems = Vec::new();
    problems.extend(server_problem(seen, settings));
    let mut add = |code, grave, message, hint: &'static str| {
        problems.push(Problem { code, message, hint: hint.into(), grave });
    };
    if let Some(failure) = &store.failure {
        add(
            failure.code().name(),
            true,
            format!("{failure}; until that is over no intent is accepted"),
            failure.hint(),
        );
    }
    if let Some(copy) = store.saved.first() {
        let message =
            format!("a store was lost while attachd ran, and what was on record then is in {}", copy.display());
        let hint = "Compare it with `attachctl list`: move the store away and restart attachd, which puts it in its place; or remove it.";
        add("STORE_SAVED", false, message, hint);
    }
    if let Some(why) = &files.refused {
        let message = format!("the NBD server would not take up its files: {why}");
        let hint = "Until that is put right no new export is served, and the server does not start again.";
        add("SERVER_FILES", false, message, hint);
    }
    if let Some(NotTold::Helper(why)) = &seen.not_told {
        let message = format!("the NBD server could not be told of new exports: {why}");
        add("SERVER_NOT_TOLD", false, message, "Check `systemctl status attachd-helper.socket attachd-nbd-server`.");
    }
    if let Some(Err(why)) = &seen.helper {
        let hint = "Check `systemctl status attachd-helper.socket`: without it late intents are not marked and clients not told apart.";
        add("HELPER_SILENT", false, why.clone(), hint);
    }
    if is_insecure(settings) {
        let message = format!("exports are served on {} without TLS (insecure = true)", settings.export.listen);
        add("INSECURE", false, message, "Listen on 127.0.0.1 and use the tunnel.");
    }
    if let Some(first) = seen.not_served.first() {
        let message =
            format!("{} volume(s) with a proven disk cannot be served; one of them: {first}", seen.not_served.len());
        add(
            "EXPORTS_FAILING",
            false,
            message,
            "`attachctl list` and `attachctl show` say why; it is tried again by itself.",
        );
    }
    let standing = [
        (
            VolumeState::Refused,
            "VOLUMES_REFUSED",
            "have a disk that fails a check",
            "`attachctl list` names the check and what to do.",
        ),
        (
            VolumeState::Lost,
            "VOLUMES_LOST",
            "were served, and their disk is gone",
            "Attach them again, and they are served again; or withdraw them: `attachctl list --state lost`.",
        ),
        (
            VolumeState::Expired,
            "VOLUMES_EXPIRED",
            "waited for a disk past their deadline",
            "Check them in CloudStack: a disk that comes later is still served. Or withdraw them: `attachctl list --state expired`.",
        ),
    ];
    for (state, code, what, hint) in standing {
        if let Some(count) = seen.volumes.get(&state).filter(|count| **count > 0) {
            add(code, false, format!("{count} volume(s) {what}"), hint);
        }
    }
    problems.extend(of_disks(seen));
    problems.extend(of_folders(seen, settings));
    problems
}

/// What is wrong with attachd's folders.
fn of_folders(seen: &Seen, settings: &Settings) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut add =
        |code, grave, message, hint: &'static str| problems.push(Problem { code, message, hint: hint.into(), grave });
    if !seen.foreign.is_empty() {
        let names = &seen.foreign;
        let message = format!("the NBD server's folders hold what attachd did not make: {names}");
        add("FOREIGN_EXPORTS", false, message, "The NBD server offers these unproven; remove them.");
    }
    if !seen.foreign_claims.is_empty() {
        let (folder, names) = (settings.store.claims.display(), &seen.foreign_claims);
        let message = format!("{folder} holds what is no claim of attachd's: {names}");
        let hint = "It is left alone. Move it away: a file named like a serial marks that disk.";
        add("FOREIGN_CLAIMS", false, message, hint);
    }
    if let Some(why) = &seen.claims {
        let message = format!("the folder of claims is not what it has to be: {why}");
        let hint = "Put it right (`systemd-tmpfiles --create` makes it): until then no intent is accepted. It heals by itself.";
        add("CLAIMS_FOLDER", true, message, hint);
    }
    if let Some(why) = &seen.exports {
        let message = format!("nothing can be exported: {why}");
        let hint = "Put the folder right (`systemd-tmpfiles --create` makes it): exports are then made and proven again by themselves.";
        add("EXPORT_FOLDER", false, message, hint);
    }
    if !seen.stuck.is_empty() {
        let message = format!("exports cannot be taken away ({}): {}", seen.stuck.count(), seen.stuck);
        let hint =
            "It is tried again by itself; or remove it by hand, or stop the NBD server, which may serve a wrong disk.";
        add("EXPORT_STUCK", false, message, hint);
    }
    problems
}

/// What stands in the way of hearing of disks and reading them.
fn of_disks(seen: &Seen) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut add = |code, message, hint: &'static str| {
        problems.push(Problem { code, message, hint: hint.into(), grave: false });
    };
    if let Udevd::Silent(since) = seen.udevd {
        let message = format!("udevd owes the event of a disk since {since}");
        let hint = "Check `systemctl status systemd-udevd`; removals are still noticed, new disks are not served.";
        add("UDEVD_SILENT", message, hint);
    } else if let Some((first, since)) = seen.held_up.first() {
        let count = seen.held_up.len();
        let message = format!(
            "udevd is held up at {count} disk(s), and served others meanwhile; the first: {first}, since {since}"
        );
        let hint = "These are not served until udevd has reported them. `systemctl status systemd-udevd` shows the program that a rule waits for, `udevadm monitor` what is reported; a disk that does not answer holds it up as well. udevd gives up after 3 minutes.";
        add("UDEVD_HELD_UP", message, hint);
    }
    if let Some(first) = seen.unread.first() {
        let message = format!("{} disk(s) cannot be read; one of them: {first}", seen.unread.len());
        let hint = "What is served of them stays served, nothing else of them is; they are read again by themselves. If this lasts, check the storage behind them.";
        add("DISKS_UNREAD", message, hint);
    }
    problems
}

fn unread(world: &World) -> Vec<String> {
    let mut all: Vec<_> = world.table.all_unread().collect();
    all.sort_unstable();
    let name = |devnum| world.table.of(devnum).map(|device| format!("/dev/{} ", device.facts.name)).unwrap_or_default();
    all.into_iter().map(|(devnum, why)| format!("{}({devnum}): {why}", name(devnum))).collect()
}

/// The NBD server does not serve, or is not known to.
fn server_problem(seen: &Seen, settings: &Settings) -> Option<Problem> {
    let unanswered = seen.asking_for.filter(|asking| *asking >= ANSWER_LIMIT);
    let message = match (&seen.server, unanswered) {
        (Some(server @ (Server::Down { .. } | Server::Silent { .. })), _) => server.to_string(),
        (_, Some(asking)) => {
            format!(
                "the NBD server has not answered a handshake on {} for {} s",
                settings.export.listen,
                asking.as_secs()
            )
        }
        _ => return None,
    };
    let hint = format!(
        "Look at `systemctl status {}`; exports are proven again at once when it answers.",
        settings.export.server.unit()
    );
    Some(Problem { code: "BACKEND_DOWN", message, hint: hint.into(), grave: false })
}

fn not_served(world: &World) -> Vec<String> {
    let failing = world.volumes().filter(|volume| volume.state == VolumeState::Exporting);
    let reasons = failing.filter_map(|volume| volume.reason.as_ref()).filter(|reason| reason.code != Code::BackendDown);
    reasons.map(|reason| format!("{}: {}", reason.code, reason.message)).collect()
}

/// The configuration that is in use is not what somebody has written down.
fn of_configuration(in_use: &InUse, tls: Option<String>) -> impl Iterator<Item = Problem> {
    let invalid = in_use.invalid.as_ref().map(|invalid| {
        let message = format!("the configuration has a mistake, and the one before it is in use: {invalid}");
        (Code::ConfigInvalid, message)
    });
    let tls = tls.map(|why| (Code::TlsFiles, format!("changed files cannot be used, those read before are: {why}")));
    let problem = |(code, message): (Code, String)| Problem {
        code: code.name(),
        message,
        hint: code.hint().into(),
        grave: false,
    };
    invalid.into_iter().chain(tls).map(problem)
}

/// What nbd-server is known for and what its files say, and what waits for a restart.
fn remarks(files: Check, in_use: &InUse) -> Vec<Remark> {
    let mut remarks = Vec::new();
    if !in_use.at_restart.is_empty() {
        let keys = in_use.at_restart.join(", ");
        let message =
            format!("the configuration has changes that take a restart of attachd (exports stay served): {keys}");
        remarks.push(Remark { code: Code::RestartNeeded.name().into(), message });
    }
    let ServerSettings::NbdServer { way, .. } = &in_use.settings.export.server else { return remarks };
    remarks.push(Remark {
        code: "WRITE_ZEROES".into(),
        message: "nbd-server zeroes only the first 64 MiB of a larger request to write zeroes and reports success \
                  (nbdcopy sends such requests): do not use its exports as nbdcopy's destination unless the disk is blank"
            .to_owned(),
    });
    remarks.extend(way.advice.clone().map(|message| Remark { code: "SERVER_VERSION".into(), message }));
    remarks.extend(files.remarks.into_iter().map(|message| Remark { code: "SERVER_FILES".into(), message }));
    remarks
}

fn backend(server: Option<Server>, settings: &Settings) -> BackendHealth {
    let way = match &settings.export.server {
        ServerSettings::Nbdkit => None,
        ServerSettings::NbdServer { way, .. } => Some(way),
    };
    let (state, pid, why) = match server {
        None => (BackendState::Unknown, None, None),
        Some(Server::Up { pid }) => (BackendState::Up, pid, None),
        Some(Server::Silent { pid, why }) => (BackendState::Silent, pid, Some(why)),
        Some(Server::Down { why }) => (BackendState::Down, None, Some(why)),
    };
    BackendHealth {
        name: settings.export.server.name().into(),
        mode: way.map(|way| way.mode.into()),
        because: way.map(|way| way.because.clone()),
        state,
        pid,
        why,
        listen: settings.export.listen.to_string(),
        insecure: is_insecure(settings),
    }
}

/// Other hosts reach the exports in the clear.
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

/// How many volumes are in each state, by the state's name.
pub(super) fn counts(world: &World) -> BTreeMap<&'static str, usize> {
    world.counts().iter().map(|(state, count)| (state.as_str(), *count)).collect()
}
