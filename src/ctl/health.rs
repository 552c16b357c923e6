//! `attachctl health`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;

use super::client::ApiClient;
use super::failure::{DONE, Failure};
use super::output::Output;
use super::systemd::{self, Unit};
use crate::volume::{State, counted};
use crate::wire::{
    BackendMode, BackendState, CloudHealth, ErrorBody, Health, HealthProblem, HealthStatus, ListenerHealth,
    ListenerOrigin, OperationsHealth, OwnVmHealth, ProjectionHealth, Remark, ResyncHealth, SocketHealth,
};

const DEGRADED: u8 = 1;
const UNHEALTHY: u8 = 2;

/// The exit statuses of this command, for `--help`.
pub(super) const EXIT_STATUSES: &str = "\
Exit statuses, as monitoring expects them:
  0  healthy
  1  degraded: there is a problem to look at
  2  unhealthy (no intent can be accepted), or attachd gave no answer";

pub(super) async fn run(client: &ApiClient, output: &Output) -> Result<ExitCode, Failure> {
    match ask(client, output).await {
        // For monitoring, no answer is as bad as an unhealthy answer.
        Err(Failure::Reported { body, .. }) => Err(Failure::Reported { status: UNHEALTHY, body }),
        other => other,
    }
}

async fn ask(client: &ApiClient, output: &Output) -> Result<ExitCode, Failure> {
    let answer = client.get_any("health", &[], Duration::ZERO).await?;
    // An error response is not a health report.
    if answer.read::<ErrorBody>().is_ok() {
        return Err(Failure::from_answer(answer.status, &answer.text));
    }
    let words = |health: &Health| Ok(in_words(health) + &of_units(health));
    let status = match output.answer_and_read(&answer, words)?.status {
        HealthStatus::Healthy => DONE,
        HealthStatus::Degraded => DEGRADED,
        HealthStatus::Unhealthy => UNHEALTHY,
    };
    Ok(status.into())
}

/// Describes the units of an NBD server that does not serve. The daemon cannot ask systemd, but the user of attachctl
/// can.
fn of_units(health: &Health) -> String {
    if health.backend.state == BackendState::Up {
        return String::new();
    }
    let units: &[&str] = match (&*health.backend.name, health.backend.mode) {
        ("nbdkit", _) => &["attachd-nbdkit.socket", "attachd-nbdkit.service"],
        (_, Some(BackendMode::Signal)) => &["attachd-nbd-server.service"],
        _ => &["attachd-nbd-server.socket"],
    };
    let known = units.iter().filter_map(|unit| Unit::ask(unit));
    let text = known.fold(String::new(), |text, unit| text + "unit     " + &unit.in_words() + "\n");
    let port = health.backend.listen.rsplit(':').next().and_then(systemd::listeners);
    text + &port.map_or(String::new(), |programs| format!("port     {} is held by {programs}\n", health.backend.listen))
}

fn in_words(health: &Health) -> String {
    let mut text =
        format!("{}: attachd {}, since {}\n", health.status, health.version, moment(Some(health.started_at)));
    for HealthProblem { code, message, hint } in &health.problems {
        let _ = write!(text, "  {code}: {message}\n    {hint}\n");
    }
    for Remark { code, message } in &health.remarks {
        let _ = writeln!(text, "  to know, {code}: {message}");
    }
    let Health { monitor, udevd, store, projection, backend, cloud, operations, .. } = health;
    let ResyncHealth { count, last_reason, last_at, losses } = &health.resync;
    let pid = backend.pid.map_or(String::new(), |pid| format!(" (pid {pid})"));
    let way = backend.mode.as_ref().zip(backend.because.as_ref());
    let way = way.map_or(String::new(), |(mode, because)| format!("; mode {mode}: {because}"));
    let lines = [
        ("volumes", counts(&health.volumes)),
        ("backend", format!("{} {}{pid}, {}{way}", backend.name, backend.state, backend.listen)),
        ("store", store.state.to_string()),
        ("tables", projection.iter().map(shown_in).collect::<Vec<_>>().join("; ")),
        ("requests", of_operations(operations)),
        ("cloud", cloud.as_ref().map_or("not configured".to_owned(), of_cloud)),
        ("udevd", udevd.since.map_or(udevd.state.to_string(), |since| format!("{}, since {since:.3}", udevd.state))),
        ("udev", socket(&monitor.udev)),
        ("kernel", socket(&monitor.kernel)),
        ("api", health.listeners.iter().map(listener).collect::<Vec<_>>().join("; ")),
        ("resync", format!("{count}, last {} ({last_reason}); {losses} losses of events", moment(*last_at))),
    ];
    for (name, line) in lines {
        let _ = writeln!(text, "{name:<9}{line}");
    }
    text
}

/// Describes a socket at which the API is served.
fn listener(listener: &ListenerHealth) -> String {
    let ListenerHealth { address, from, tls } = listener;
    format!(
        "{address} ({}{})",
        if *tls { "TLS, " } else { "" },
        match from {
            ListenerOrigin::Systemd => "from systemd",
            ListenerOrigin::Attachd => "opened by attachd: callers are refused while it restarts",
        }
    )
}

/// Describes what callers have asked for and has not ended.
fn of_operations(operations: &OperationsHealth) -> String {
    let OperationsHealth { open, oldest_at, failed_last_hour, .. } = operations;
    let oldest = oldest_at.map_or(String::new(), |at| format!(", the oldest since {}", moment(Some(at))));
    let failed = failed_last_hour.map_or("unknown how many".to_owned(), |failed| failed.to_string());
    format!("{open} operations open{oldest}; {failed} failed in the last hour")
}

/// Describes what is known of CloudStack and of this host's own VM.
fn of_cloud(cloud: &CloudHealth) -> String {
    let OwnVmHealth { id, from, .. } = &cloud.own_vm;
    let vm = id.as_ref().zip(from.as_ref());
    let vm = vm.map_or(String::new(), |(id, from)| format!("; this host is the VM {id} ({from})"));
    format!("{} {}, last answer {}{vm}", cloud.url, cloud.state, moment(cloud.last_answer))
}

/// Describes how far the predecessor's tables are behind.
fn shown_in(projection: &ProjectionHealth) -> String {
    let number = |count: Option<u64>| count.map_or("unknown".to_owned(), |count| count.to_string());
    format!("{}, {} to be written, {} refused", projection.target, number(projection.owed), number(projection.refused))
}

fn socket(socket: &SocketHealth) -> String {
    let drops = socket.drops.map_or("unknown".to_owned(), |drops| drops.to_string());
    format!("{} events, {} overruns, {drops} drops", socket.events, socket.overruns)
}

fn counts(volumes: &BTreeMap<State, usize>) -> String {
    let counts = counted(|state| volumes.get(&state).copied().unwrap_or(0));
    if counts.is_empty() { "none".to_owned() } else { counts }
}

fn moment(at: Option<Timestamp>) -> String {
    at.map_or("-".to_owned(), |at| format!("{at:.3}"))
}
