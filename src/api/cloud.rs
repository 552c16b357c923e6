//! CloudStack in health and in the metrics, as far as calls have shown it.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::cloud::{Access, CloudSettings, OwnVm, Seen, TroubleKind};
use crate::reason::Code;
use crate::wire::{CloudHealth, CloudState, LastRefusal, OwnVmHealth};

/// Returns what is known of CloudStack.
pub(super) fn health(access: &Access, settings: &CloudSettings) -> CloudHealth {
    let (seen, own_vm) = access.has_seen();
    let state = match (&seen.trouble, seen.last_answer) {
        (Some(_), _) => CloudState::Failing,
        (None, Some(_)) => CloudState::Answers,
        (None, None) => CloudState::Unknown,
    };
    let (id, from, why) = match own_vm {
        None => (None, None, None),
        Some(OwnVm::Known { id, from }) => (Some(id.to_string()), Some(from.to_string()), None),
        Some(OwnVm::Unknown { why }) => (None, None, Some(why)),
    };
    let refusal = seen.last_refusal.map(|(at, command, refusal)| LastRefusal {
        at,
        command: command.into(),
        message: refusal.to_string(),
    });
    CloudHealth {
        url: settings.url.to_string(),
        state,
        since: seen.trouble.as_ref().map(|trouble| trouble.since),
        why: seen.trouble.map(|trouble| trouble.why),
        last_answer: seen.last_answer,
        last_refusal: refusal,
        own_vm: OwnVmHealth { id, from, why },
    }
}

/// Returns the problems with CloudStack and with this host's own VM.
pub(super) fn problems(access: &Access, settings: &CloudSettings) -> Vec<(Code, String)> {
    let (Seen { trouble, .. }, own_vm) = access.has_seen();
    let mut problems = Vec::new();
    let is_failing = trouble.is_some();
    if let Some(trouble) = trouble {
        let code = match trouble.kind {
            TroubleKind::Unreachable => Code::CloudUnreachable,
            TroubleKind::KeptIn => Code::CloudKeptIn,
            TroubleKind::NotAble => Code::CloudFiles,
            TroubleKind::NotLetIn => Code::CloudNotLetIn,
            TroubleKind::NotUnderstood => Code::CloudNotUnderstood,
        };
        problems.push((code, format!("{}, since {}", trouble.why, trouble.since)));
    }
    // While calls fail, that is the cause to look at.
    if let Some(OwnVm::Unknown { why }) = own_vm
        && !is_failing
    {
        problems.push((Code::OwnVmUnknown, format!("which VM this host is is unknown: {why}")));
    }
    if settings.is_in_the_clear() {
        problems.push((
            Code::CloudInsecure,
            format!("CloudStack is called at {} without TLS (insecure = true)", settings.url),
        ));
    }
    problems
}

/// Returns one line for the predecessor's field.
pub(super) fn in_short(health: Option<&CloudHealth>) -> String {
    match health {
        None => "not configured".to_owned(),
        Some(CloudHealth { state: CloudState::Unknown, .. }) => "unknown".to_owned(),
        Some(CloudHealth { state: CloudState::Answers, .. }) => "healthy".to_owned(),
        Some(CloudHealth { why, .. }) => format!("unhealthy: {}", why.as_deref().unwrap_or_default()),
    }
}

/// Adds the metrics.
pub(super) fn figures(registry: &mut Registry, access: &Access) {
    let (seen, _) = access.has_seen();
    let calls = Family::<Vec<(&'static str, &'static str)>, Counter>::default();
    for ((command, outcome), count) in seen.calls {
        calls.get_or_create(&vec![("command", command), ("outcome", outcome.name())]).inc_by(count);
    }
    registry.register("cloud_calls", "Calls to CloudStack, by command and outcome", calls);
}
