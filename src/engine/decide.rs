//! What to do about one volume: the one place where that is decided. Pure.

use jiff::Timestamp;

use crate::device::evidence::{self, Evidence, Ground, Refusal};
use crate::device::table::Device;
use crate::device::DevNum;
use crate::export::server::Server;
use crate::volume::{Intent, Reason, State};

/// What is wanted, and what is on record.
#[derive(Debug, Clone, Copy)]
pub struct Desired<'a> {
    /// The wish.
    pub intent: &'a Intent,
    /// The recorded mapping, of whatever age.
    pub mapping: Option<&'a Evidence>,
}

/// What is there.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// The time, for deadlines and evidence.
    pub now: Timestamp,
    /// Boot and group that evidence is held against.
    pub ground: &'a Ground,
    /// The present disks that show the volume's serial.
    pub present: &'a [&'a Device],
    /// They were read after the last reason to distrust an older reading.
    pub fresh: bool,
    /// The export's link exists.
    pub published: bool,
    /// A handshake has succeeded since the link was made and the server came up.
    pub proven: bool,
    /// udevd owes the event of a disk for too long.
    pub udevd_silent: bool,
    /// The NBD server; `None`: not known yet.
    pub server: Option<&'a Server>,
    /// The next step failed lately and is to wait.
    pub trouble: Option<&'a Reason>,
    /// Where the volume stands.
    pub standing: (State, Option<&'a Reason>),
}

/// Where the volume stands from now on, and what is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The state.
    pub state: State,
    /// Why it is not served, as far as there is something to say.
    pub reason: Option<Reason>,
    /// Take the export away, now.
    pub revoke: bool,
    /// The one next step.
    pub step: Option<Step>,
}

/// One step on the way to being served. Each may be repeated and then changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Read the disk again.
    Look(DevNum),
    /// Make the mapping durable.
    Record(Evidence),
    /// Make the link.
    Publish(Evidence),
    /// Ask the server for it.
    Probe(Evidence),
}

/// Decides.
pub fn decide(desired: &Desired<'_>, observed: &Observed<'_>) -> Decision {
    let Some(device) = observed.present.first() else { return absent(desired, observed) };
    if observed.present.len() == 1 {
        if !device.settled {
            return unfinished(desired, observed, device);
        }
        if !observed.fresh {
            let (state, reason) = observed.standing;
            let step = Some(Step::Look(device.facts.devnum));
            return Decision { state, reason: reason.cloned(), revoke: false, step };
        }
    }
    match evidence::check(observed.ground, observed.present, desired.intent.size_bytes, observed.now) {
        Some(Ok(evidence)) => proven(desired, observed, evidence),
        Some(Err(refusal)) => refused(observed, &refusal),
        // Only disks that show a serial are looked up by it.
        None => absent(desired, observed),
    }
}

fn absent(desired: &Desired<'_>, observed: &Observed<'_>) -> Decision {
    let state = without_disk(desired, observed.now);
    let serial = desired.intent.serial();
    let reason = match state {
        State::Lost => Some(Reason::new(
            "DEVICE_GONE",
            format!("no disk with the serial {serial} is present any more"),
            "Attach the volume again, or withdraw the intent.",
        )),
        State::Expired => Some(Reason::new(
            "DEADLINE_PASSED",
            format!("no disk with the serial {serial} came before the deadline"),
            "Check the volume in CloudStack and `attachctl devices` here; a disk that comes later is still served.",
        )),
        _ => None,
    };
    Decision { state, reason, revoke: observed.published, step: None }
}

/// The kernel shows the disk, udevd has not reported it: it is at its rules, which takes milliseconds, or it is dead.
fn unfinished(desired: &Desired<'_>, observed: &Observed<'_>, device: &Device) -> Decision {
    let state = without_disk(desired, observed.now);
    let worth_saying = observed.udevd_silent || state == State::Lost;
    let message = format!("/dev/{} shows the serial, but udev has not reported it yet", device.facts.name);
    let hint = "If this lasts, check `systemctl status systemd-udevd`.";
    let reason = worth_saying.then(|| Reason::new("UDEV_NOT_FINISHED", message, hint));
    Decision { state, reason, revoke: observed.published, step: None }
}

fn without_disk(desired: &Desired<'_>, now: Timestamp) -> State {
    if desired.mapping.is_some() {
        State::Lost
    } else if desired.intent.deadline().is_some_and(|deadline| deadline <= now) {
        State::Expired
    } else {
        State::Waiting
    }
}

fn refused(observed: &Observed<'_>, refusal: &Refusal) -> Decision {
    let reason = Reason::new(refusal.code(), refusal.to_string(), refusal.hint());
    Decision { state: State::Refused, reason: Some(reason), revoke: observed.published, step: None }
}

fn proven(desired: &Desired<'_>, observed: &Observed<'_>, evidence: Evidence) -> Decision {
    let go = |state, step| match observed.trouble {
        None => Decision { state, reason: None, revoke: false, step: Some(step) },
        Some(trouble) => Decision { state, reason: Some(trouble.clone()), revoke: false, step: None },
    };
    if !desired.mapping.is_some_and(|mapping| mapping.agrees(&evidence)) {
        // Not the disk on record: whatever is published under this name is not proven.
        return Decision { revoke: observed.published, ..go(State::Matched, Step::Record(evidence)) };
    }
    if !observed.published {
        return go(State::Exporting, Step::Publish(evidence));
    }
    match observed.server {
        Some(Server::Up { .. }) if observed.proven => {
            Decision { state: State::Ready, reason: None, revoke: false, step: None }
        }
        Some(Server::Up { .. }) => go(State::Exporting, Step::Probe(evidence)),
        Some(Server::Down { why }) => {
            let hint = "Start the NBD server (`systemctl start attachd-nbdkit`); the export is proven again at once.";
            let reason = Some(Reason::new("BACKEND_DOWN", format!("the NBD server is down: {why}"), hint));
            Decision { state: State::Exporting, reason, revoke: false, step: None }
        }
        None => Decision { state: State::Exporting, reason: None, revoke: false, step: None },
    }
}
