//! Decides what to do about one volume. This is the one place for that decision, and it is pure.

use jiff::Timestamp;

use crate::clock::Steady;
use crate::device::DevNum;
use crate::device::evidence::{self, Evidence, Ground, Refusal};
use crate::device::table::Device;
use crate::export::server::Server;
use crate::identity::Serial;
use crate::reason::Code;
use crate::volume::{Intent, Reason, State};

/// What is wanted, and what is recorded.
#[derive(Debug, Clone, Copy)]
pub struct Desired<'a> {
    /// The intent.
    pub intent: &'a Intent,
    /// The recorded mapping, of any age.
    pub mapping: Option<&'a Evidence>,
}

/// What was observed.
#[derive(Debug, Clone, Copy)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own; together they are no state machine")]
pub struct Observed<'a> {
    /// The time, as evidence records it.
    pub now: Timestamp,
    /// The same time by the clock of the deadlines.
    pub steady: Steady,
    /// The boot and the group with which evidence is compared.
    pub ground: &'a Ground,
    /// The present disks that show the volume's serial.
    pub present: &'a [&'a Device],
    /// Whether they were read after the last reason to distrust an older reading.
    pub fresh: bool,
    /// Whether the export's link exists.
    pub published: bool,
    /// Whether udev was asked once to handle this very disk again.
    pub retriggered: bool,
    /// Whether the server knows of the export's files, or need not be notified.
    pub told: bool,
    /// Whether a moment ago nobody had this very disk, or a partition of it, open exclusively.
    pub free: bool,
    /// Whether a handshake has succeeded since the link was made and the server came up.
    pub proven: bool,
    /// Why the disk cannot be read now. The last reading stays valid, but no new step uses it.
    pub unread: Option<&'a str>,
    /// Whether udevd owes the event of this disk for too long, or is silent.
    pub udevd_owes: bool,
    /// The NBD server. `None`: not known yet.
    pub server: Option<&'a Server>,
    /// The server's unit, for hints.
    pub server_unit: &'a str,
    /// The reason for which the next step failed lately. `true`: the step must wait.
    pub trouble: Option<(&'a Reason, bool)>,
    /// The present state of the volume.
    pub standing: (State, Option<&'a Reason>),
}

/// The new state of a volume, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The state.
    pub state: State,
    /// Why the volume is not served, if there is a reason to give.
    pub reason: Option<Reason>,
    /// Whether to revoke the export now.
    pub revoke: bool,
    /// The one next step.
    pub step: Option<Step>,
}

/// One step on the way to being served. Repeating a step changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Read the disk again.
    Look(DevNum),
    /// Ask udev to handle the present disk again.
    Retrigger(Serial),
    /// Make the mapping durable.
    Record(Evidence),
    /// Ask the kernel whether a process has the disk open exclusively.
    TryOpen(Evidence),
    /// Publish the export.
    Publish(Evidence),
    /// Notify the server of its files.
    Tell,
    /// Make a handshake for the export.
    Probe(Evidence),
}

/// Decides.
pub fn decide(desired: &Desired<'_>, observed: &Observed<'_>) -> Decision {
    let Some(device) = observed.present.first() else {
        // No serial was read, but the recorded disk has not gone: in this boot no other disk has its sequence number.
        let on_record = desired.mapping.filter(|mapping| mapping.boot_id == observed.ground.boot_id);
        return match observed.unread.zip(on_record) {
            Some((why, mapping)) => held(desired, observed, mapping.clone(), why),
            None => absent(desired, observed),
        };
    };
    if observed.present.len() == 1 {
        if !device.settled {
            return unfinished(desired, observed, device);
        }
        if let Some(why) = observed.unread {
            return match evidence::check(observed.ground, observed.present, desired.intent.size_bytes, observed.now) {
                Some(Ok(evidence)) => held(desired, observed, evidence, why),
                Some(Err(refusal)) => refused(desired, observed, &refusal),
                None => absent(desired, observed),
            };
        }
        if !observed.fresh {
            return stale(desired, observed, device);
        }
    }
    match evidence::check(observed.ground, observed.present, desired.intent.size_bytes, observed.now) {
        Some(Ok(evidence)) => proven(desired, observed, evidence),
        Some(Err(refusal)) => refused(desired, observed, &refusal),
        // Only disks that show a serial are found by it.
        None => absent(desired, observed),
    }
}

fn absent(desired: &Desired<'_>, observed: &Observed<'_>) -> Decision {
    let state = without_disk(desired, observed.steady);
    let serial = desired.intent.serial();
    let reason = match state {
        State::Lost => {
            Some(Reason::new(Code::DeviceGone, format!("no disk with the serial {serial} is present any more")))
        }
        State::Expired => Some(Reason::new(
            Code::DeadlinePassed,
            format!("no disk with the serial {serial} came before the deadline"),
        )),
        _ => None,
    };
    Decision { state, reason, revoke: observed.published, step: None }
}

/// Decides for a disk that the kernel shows and udevd has not reported. udevd may be running its rules, which takes
/// milliseconds, or be held up, or dead.
fn unfinished(desired: &Desired<'_>, observed: &Observed<'_>, device: &Device) -> Decision {
    let state = without_disk(desired, observed.steady);
    let (stood, reason) = observed.standing;
    let reason = if observed.udevd_owes || observed.published {
        let message = format!("/dev/{} shows the serial, but udev has not reported it yet", device.facts.name);
        Some(Reason::new(Code::UdevNotFinished, message))
    } else {
        reason.filter(|_| stood == state).cloned()
    };
    // udevd never repeats what it missed while it was away. So it is asked again until it reports the disk.
    let again = observed.udevd_owes && !observed.retriggered;
    let step = again.then(|| Step::Retrigger(desired.intent.serial()));
    Decision { state, reason, revoke: observed.published, step }
}

/// Decides for a disk whose last reading is of a past moment. The disk is read again, and nothing is done for it
/// before that. But an export that was published on an earlier reading, and does not pass the checks with this one,
/// is revoked at once.
fn stale(desired: &Desired<'_>, observed: &Observed<'_>, device: &Device) -> Decision {
    let step = Some(Step::Look(device.facts.devnum));
    let (stood, reason) = observed.standing;
    // An earlier proof counts no more, also while the disk is read.
    let state =
        if stood == State::Ready && !(observed.published && observed.proven) { State::Exporting } else { stood };
    let stands = Decision { state, reason: reason.cloned(), revoke: false, step: step.clone() };
    if !observed.published {
        return stands;
    }
    match evidence::check(observed.ground, observed.present, desired.intent.size_bytes, observed.now) {
        Some(Err(refusal)) => Decision { step, ..refused(desired, observed, &refusal) },
        Some(Ok(evidence)) if !desired.mapping.is_some_and(|mapping| mapping.agrees(&evidence)) => {
            Decision { state: State::Exporting, reason: None, revoke: true, step }
        }
        Some(Ok(_)) | None => stands,
    }
}

/// Decides for a disk that cannot be read now. `evidence` is the last that was valid. An export that was published on
/// it stays published. Nothing is recorded or published on it.
fn held(desired: &Desired<'_>, observed: &Observed<'_>, evidence: Evidence, why: &str) -> Decision {
    let on_record = desired.mapping.is_some_and(|mapping| mapping.agrees(&evidence));
    if on_record && observed.published {
        return proven(desired, observed, evidence);
    }
    let state = match observed.standing.0 {
        _ if on_record => State::Exporting,
        State::Attaching | State::Waiting | State::Expired | State::Lost => without_disk(desired, observed.steady),
        State::Ready => State::Exporting,
        other => other,
    };
    let reason = unread(&format!("the disk with the serial {}", desired.intent.serial()), why);
    Decision { state, reason: Some(reason), revoke: observed.published, step: None }
}

/// Returns why a step waits that needs a disk that cannot be read.
pub(super) fn unread(disk: &str, why: &str) -> Reason {
    Reason::new(Code::DiskUnread, format!("{disk} is there, but could not be read: {why}"))
}

fn without_disk(desired: &Desired<'_>, now: Steady) -> State {
    if desired.mapping.is_some() {
        State::Lost
    } else if desired.intent.deadline.is_some_and(|deadline| deadline <= now) {
        State::Expired
    } else {
        State::waiting_for(desired.intent.origin)
    }
}

fn refused(desired: &Desired<'_>, observed: &Observed<'_>, refusal: &Refusal) -> Decision {
    let reason = Reason::hinted(refusal.code(), refusal.to_string(), refusal.hint());
    let retrigger = refusal.wants_retrigger() && !observed.retriggered;
    let step = retrigger.then(|| Step::Retrigger(desired.intent.serial()));
    Decision { state: State::Refused, reason: Some(reason), revoke: observed.published, step }
}

fn proven(desired: &Desired<'_>, observed: &Observed<'_>, evidence: Evidence) -> Decision {
    // The reason stays while the step is retried, so that it is reported once and not at every attempt.
    let go = |state, step| match observed.trouble {
        None => Decision { state, reason: None, revoke: false, step: Some(step) },
        Some((reason, waits)) => {
            Decision { state, reason: Some(reason.clone()), revoke: false, step: (!waits).then_some(step) }
        }
    };
    if !desired.mapping.is_some_and(|mapping| mapping.agrees(&evidence)) {
        // The disk is not the recorded one, so whatever is published under this name is not proven.
        return Decision { revoke: observed.published, ..go(State::Matched, Step::Record(evidence)) };
    }
    if !observed.published && !observed.free {
        let used = observed.trouble.is_some_and(|(reason, _)| reason.code == Code::InUseByHost);
        return go(if used { State::Refused } else { State::Exporting }, Step::TryOpen(evidence));
    }
    if !observed.published {
        return go(State::Exporting, Step::Publish(evidence));
    }
    match observed.server {
        Some(Server::Up { .. }) if observed.proven => {
            Decision { state: State::Ready, reason: None, revoke: false, step: None }
        }
        Some(Server::Up { .. }) if !observed.told => go(State::Exporting, Step::Tell),
        Some(Server::Up { .. }) => go(State::Exporting, Step::Probe(evidence)),
        Some(server @ (Server::Down { .. } | Server::Silent { .. })) => {
            let reason = Reason::about(Code::BackendDown, observed.server_unit, server.to_string());
            Decision { state: State::Exporting, reason: Some(reason), revoke: false, step: None }
        }
        None => Decision { state: State::Exporting, reason: None, revoke: false, step: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::facts::sample::{DEVNUM, device, ground, spoilt, volume};
    use crate::device::facts::{LinkTarget, Use};
    use crate::volume::IntentOrigin;
    use proptest::prelude::*;

    fn now() -> Timestamp {
        Timestamp::from_second(1_000_000).unwrap()
    }

    /// The time at which every scene begins.
    const BEGIN: Steady = Steady::from_micros(7_000_000);

    fn intent(deadline_seconds: Option<u32>, origin: IntentOrigin) -> Intent {
        Intent {
            volume: volume(),
            vm_id: String::new(),
            size_bytes: None,
            deadline_seconds,
            deadline: Intent::deadline_from(BEGIN, deadline_seconds),
            created_at: now(),
            uid: None,
            origin,
        }
    }

    /// Everything that `decide` sees of one volume, owned.
    #[derive(Debug, Clone)]
    #[allow(clippy::struct_excessive_bools, reason = "as in Observed")]
    struct Scene {
        now: Timestamp,
        steady: Steady,
        deadline: Option<u32>,
        origin: IntentOrigin,
        mapping: Option<Evidence>,
        present: Vec<Device>,
        fresh: bool,
        published: bool,
        retriggered: bool,
        told: bool,
        free: bool,
        proven: bool,
        unread: bool,
        udevd_owes: bool,
        server: Option<Server>,
        trouble: Option<(Reason, bool)>,
        standing: (State, Option<Reason>),
    }

    impl Scene {
        /// Returns a scene with a disk, for which nothing was done yet.
        fn new() -> Self {
            Self {
                now: now(),
                steady: BEGIN,
                deadline: None,
                origin: IntentOrigin::Announced,
                mapping: None,
                present: vec![device()],
                fresh: true,
                published: false,
                retriggered: false,
                told: true,
                free: false,
                proven: false,
                unread: false,
                udevd_owes: false,
                server: Some(Server::Up { pid: Some(1) }),
                trouble: None,
                standing: (State::Waiting, None),
            }
        }

        fn served() -> Self {
            let mapping = evidence::check(&ground(), &[&device()], None, now()).unwrap().unwrap();
            Self {
                mapping: Some(mapping),
                published: true,
                proven: true,
                standing: (State::Ready, None),
                ..Self::new()
            }
        }

        fn decide(&self) -> Decision {
            let (intent, ground) = (intent(self.deadline, self.origin), ground());
            let present: Vec<&Device> = self.present.iter().collect();
            let observed = Observed {
                now: self.now,
                steady: self.steady,
                ground: &ground,
                present: &present,
                fresh: self.fresh,
                published: self.published,
                retriggered: self.retriggered,
                told: self.told,
                free: self.free,
                proven: self.proven,
                unread: self.unread.then_some("no answer"),
                udevd_owes: self.udevd_owes,
                server: self.server.as_ref(),
                server_unit: "the-unit",
                trouble: self.trouble.as_ref().map(|(reason, waits)| (reason, *waits)),
                standing: (self.standing.0, self.standing.1.as_ref()),
            };
            decide(&Desired { intent: &intent, mapping: self.mapping.as_ref() }, &observed)
        }

        /// Does what was decided, as the engine would if everything succeeds. Returns false if there was nothing to
        /// do.
        fn carry_out(&mut self, decision: &Decision) -> bool {
            if decision.revoke {
                (self.published, self.proven, self.free) = (false, false, false);
            }
            self.standing = (decision.state, decision.reason.clone());
            if decision.step.is_some() {
                self.trouble = None;
            }
            match &decision.step {
                None => return decision.revoke,
                Some(Step::Look(_)) => self.fresh = true,
                Some(Step::Retrigger(_)) => self.retriggered = true,
                Some(Step::Record(evidence)) => self.mapping = Some(evidence.clone()),
                Some(Step::TryOpen(_)) => self.free = true,
                Some(Step::Publish(_)) => (self.published, self.proven, self.free) = (true, false, false),
                Some(Step::Tell) => self.told = true,
                Some(Step::Probe(_)) => self.proven = true,
            }
            true
        }
    }

    fn code(decision: &Decision) -> Option<Code> {
        decision.reason.as_ref().map(|reason| reason.code)
    }

    #[test]
    fn a_disk_is_recorded_published_probed_and_then_ready_in_this_order() {
        let mut scene = Scene { fresh: false, ..Scene::new() };
        let mut steps = Vec::new();
        for _ in 0..9 {
            let decision = scene.decide();
            steps.push((decision.state, decision.step.as_ref().map(|step| format!("{step:?}")[..4].to_owned())));
            if !scene.carry_out(&decision) {
                break;
            }
        }
        let step = |name: &str| Some(name.to_owned());
        assert_eq!(
            steps,
            [
                (State::Waiting, step("Look")),
                (State::Matched, step("Reco")),
                (State::Exporting, step("TryO")),
                (State::Exporting, step("Publ")),
                (State::Exporting, step("Prob")),
                (State::Ready, None)
            ]
        );
    }

    #[test]
    fn an_earlier_servers_proof_is_not_ready_while_the_disk_is_read_again() {
        let served = Scene { fresh: false, ..Scene::served() };
        assert_eq!(served.decide().state, State::Ready, "the control");
        let decision = Scene { proven: false, ..served }.decide();
        assert_eq!((decision.state, decision.step), (State::Exporting, Some(Step::Look(DEVNUM))));
    }

    #[test]
    fn an_export_that_fails_the_checks_is_revoked_before_the_next_reading() {
        let served = Scene { fresh: false, ..Scene::served() };
        assert!(!served.decide().revoke, "the control");
        let mounted = spoilt(|_, identity| identity.uses = vec![Use::Mounted("/srv".into())]);
        let decision = Scene { present: vec![mounted], ..served.clone() }.decide();
        assert_eq!((decision.state, code(&decision), decision.revoke), (State::Refused, Some(Code::InUseByHost), true));
        let other = spoilt(|facts, _| (facts.diskseq, facts.diskseq_after) = (6, 6));
        let decision = Scene { present: vec![other], ..served }.decide();
        assert_eq!((decision.state, decision.revoke), (State::Exporting, true));
        assert_eq!(decision.step, Some(Step::Look(DEVNUM)), "nothing is done for it before it is read once more");
    }

    #[test]
    fn a_server_is_notified_of_new_files_before_the_handshake() {
        let scene = Scene { told: false, proven: false, ..Scene::served() };
        assert_eq!(scene.decide().step, Some(Step::Tell));
        let down = Scene { server: Some(Server::Down { why: "x".into() }), ..scene.clone() };
        assert_eq!(down.decide().step, None, "there is nobody to tell");
        assert!(matches!(Scene { told: true, ..scene }.decide().step, Some(Step::Probe(_))));
    }

    #[test]
    fn a_served_volume_is_left_alone() {
        let decision = Scene::served().decide();
        assert_eq!(decision, Decision { state: State::Ready, reason: None, revoke: false, step: None });
    }

    #[test]
    fn a_volume_without_a_disk_waits_until_the_deadline_and_is_lost_if_it_had_one() {
        let empty = Scene { present: Vec::new(), ..Scene::new() };
        assert_eq!(empty.decide(), Decision { state: State::Waiting, reason: None, revoke: false, step: None });
        let at = |seconds: i64| Scene {
            deadline: Some(10),
            steady: BEGIN.after(jiff::SignedDuration::from_secs(seconds)),
            ..empty.clone()
        };
        assert_eq!(at(9).decide().state, State::Waiting);
        let expired = at(10).decide();
        assert_eq!((expired.state, code(&expired)), (State::Expired, Some(Code::DeadlinePassed)));
        let lost = Scene { present: Vec::new(), ..Scene::served() }.decide();
        assert_eq!(
            (lost.state, code(&lost), lost.revoke, lost.step),
            (State::Lost, Some(Code::DeviceGone), true, None)
        );
    }

    #[test]
    fn a_volume_that_an_operation_attaches_is_attaching_until_its_disk_is_here_or_the_deadline_passes() {
        let origin = IntentOrigin::Operation("00000000-0000-4000-8000-000000000001".parse().unwrap());
        let scene = Scene { origin, deadline: Some(10), standing: (State::Attaching, None), ..Scene::new() };
        let away = Scene { present: Vec::new(), ..scene.clone() };
        assert_eq!(away.decide(), Decision { state: State::Attaching, reason: None, revoke: false, step: None });
        let announced = Scene { origin: IntentOrigin::Announced, ..away.clone() };
        assert_eq!(announced.decide().state, State::Waiting, "the control");
        let unfinished = Scene { present: vec![Device { settled: false, ..device() }], ..scene.clone() };
        assert_eq!(unfinished.decide().state, State::Attaching);
        let unread = Scene { unread: true, fresh: false, ..scene.clone() }.decide();
        assert_eq!((unread.state, code(&unread)), (State::Attaching, Some(Code::DiskUnread)));
        let late = Scene { steady: BEGIN.after(jiff::SignedDuration::from_secs(10)), ..away.clone() };
        assert_eq!(late.decide().state, State::Expired);
        assert_eq!(scene.decide().state, State::Matched);
        let lost = Scene { mapping: Scene::served().mapping, ..away };
        assert_eq!(lost.decide().state, State::Lost);
    }

    #[test]
    fn a_kernel_event_alone_publishes_nothing_and_is_mentioned_only_if_udevd_is_silent() {
        let unsettled = Device { settled: false, ..device() };
        let scene = Scene { present: vec![unsettled], ..Scene::new() };
        assert_eq!(scene.decide(), Decision { state: State::Waiting, reason: None, revoke: false, step: None });
        let silent = Scene { udevd_owes: true, ..scene.clone() };
        let asked = Scene { retriggered: true, ..silent.clone() }.decide();
        assert_eq!(asked.step, None, "udev was asked, and is given time");
        let silent = silent.decide();
        let again = Some(Step::Retrigger(volume().serial()));
        assert_eq!((silent.state, code(&silent), silent.step), (State::Waiting, Some(Code::UdevNotFinished), again));
        // The disk of a lost volume is coming back. That takes milliseconds, and needs no reason.
        let gone = Reason::new(Code::DeviceGone, "gone");
        let standing = (State::Lost, Some(gone.clone()));
        let back = Scene { mapping: Scene::served().mapping, standing, ..scene.clone() }.decide();
        assert_eq!(back, Decision { state: State::Lost, reason: Some(gone), revoke: false, step: None });
        // The disk of a served volume was replaced by another with its serial.
        let swapped = Scene { present: scene.present, ..Scene::served() }.decide();
        assert_eq!((swapped.state, code(&swapped), swapped.revoke), (State::Lost, Some(Code::UdevNotFinished), true));
    }

    #[test]
    fn an_old_reading_only_causes_another_reading() {
        let stale = Scene { fresh: false, ..Scene::served() }.decide();
        let step = Some(Step::Look(DEVNUM));
        assert_eq!(stale, Decision { state: State::Ready, reason: None, revoke: false, step });
    }

    /// Invariant 13: "could not be read" is never "is not there".
    #[test]
    fn an_unreadable_disk_keeps_its_proof_and_starts_no_new_step() {
        for present in [vec![device()], Vec::new()] {
            let served = Scene { present, fresh: false, unread: true, ..Scene::served() };
            let kept = Decision { state: State::Ready, reason: None, revoke: false, step: None };
            assert_eq!(served.decide(), kept);
            // Also after a start, when the server must be proven again to serve it.
            let asked = Scene { proven: false, standing: (State::Exporting, None), ..served.clone() }.decide();
            assert!(matches!(asked.step, Some(Step::Probe(_))), "{asked:?}");
            let down = Scene { server: Some(Server::Down { why: "x".into() }), ..served.clone() }.decide();
            assert_eq!((down.state, code(&down)), (State::Exporting, Some(Code::BackendDown)));
            let not_published = Scene { published: false, proven: false, ..served.clone() }.decide();
            let waits = (State::Exporting, Some(Code::DiskUnread), false, None);
            assert_eq!((not_published.state, code(&not_published), not_published.revoke, not_published.step), waits);
        }
        let new = Scene { unread: true, fresh: false, ..Scene::new() }.decide();
        assert_eq!((new.state, code(&new), new.step), (State::Waiting, Some(Code::DiskUnread), None));
        // For comparison: the disk can be read, and is gone; it is of another boot; there are two disks.
        let gone = Scene { present: Vec::new(), ..Scene::served() };
        assert!(gone.decide().revoke);
        let before = gone.mapping.clone().map(|mapping| Evidence { boot_id: "before".into(), ..mapping });
        assert!(Scene { unread: true, mapping: before, ..gone }.decide().revoke);
        let two = Scene { unread: true, present: vec![device(), device()], ..Scene::served() }.decide();
        assert_eq!((two.state, code(&two), two.revoke), (State::Refused, Some(Code::DuplicateSerial), true));
    }

    #[test]
    fn a_duplicate_serial_is_refused_on_a_kernel_event_or_an_old_reading() {
        let twin = Device {
            settled: false,
            ..spoilt(|facts, _| facts.devnum = crate::device::DevNum { major: 254, minor: 32 })
        };
        for fresh in [true, false] {
            let decision = Scene { present: vec![device(), twin.clone()], fresh, ..Scene::served() }.decide();
            let expected = (State::Refused, Some(Code::DuplicateSerial), true, &None);
            assert_eq!((decision.state, code(&decision), decision.revoke, &decision.step), expected);
        }
    }

    #[test]
    fn udev_is_retriggered_once_if_that_can_help() {
        let unmarked = spoilt(|_, identity| identity.link_target = LinkTarget::Device(DEVNUM, 0));
        let scene = Scene { present: vec![unmarked], ..Scene::new() };
        let decision = scene.decide();
        let asks = Some(Step::Retrigger(volume().serial()));
        assert_eq!((decision.state, code(&decision), decision.step), (State::Refused, Some(Code::NotMarked), asks));
        let asked = Scene { retriggered: true, ..scene }.decide();
        assert_eq!((asked.state, code(&asked), asked.step), (State::Refused, Some(Code::NotMarked), None));
        let used = spoilt(|_, identity| identity.uses.push(Use::Swap));
        assert_eq!(Scene { present: vec![used], ..Scene::new() }.decide().step, None);
    }

    #[test]
    fn evidence_that_differs_from_the_record_revokes_the_export_and_is_recorded_again() {
        let resized = spoilt(|facts, _| facts.size_bytes *= 2);
        let decision = Scene { present: vec![resized], ..Scene::served() }.decide();
        assert_eq!((decision.state, decision.revoke), (State::Matched, true));
        assert!(matches!(decision.step, Some(Step::Record(_))));
    }

    #[test]
    fn a_server_that_is_down_or_unknown_gets_no_handshake() {
        let down = Server::Down { why: "the process has ended".into() };
        let decision = Scene { server: Some(down), ..Scene::served() }.decide();
        assert_eq!((decision.state, code(&decision), decision.step), (State::Exporting, Some(Code::BackendDown), None));
        assert!(decision.reason.unwrap().message.contains("the process has ended"));
        let unknown = Scene { server: None, ..Scene::served() }.decide();
        assert_eq!(unknown, Decision { state: State::Exporting, reason: None, revoke: false, step: None });
    }

    #[test]
    fn a_failure_delays_the_next_step_and_is_shown() {
        let trouble = Some((Reason::new(Code::StoreFailed, "disk full"), true));
        let record = Scene { trouble: trouble.clone(), ..Scene::new() };
        let publish = Scene { published: false, proven: false, trouble: trouble.clone(), ..Scene::served() };
        let probe = Scene { proven: false, trouble, ..Scene::served() };
        for (scene, state) in [(record, State::Matched), (publish, State::Exporting), (probe, State::Exporting)] {
            let decision = scene.decide();
            assert_eq!((decision.state, code(&decision), decision.step), (state, Some(Code::StoreFailed), None));
            let trouble = scene.trouble.clone().map(|(reason, _)| (reason, false));
            let again = Scene { trouble, ..scene }.decide();
            assert_eq!((again.state, code(&again)), (state, Some(Code::StoreFailed)), "said until it succeeds");
            assert!(again.step.is_some());
        }
    }

    #[test]
    fn an_exclusively_open_disk_is_refused_and_retried_after_the_wait() {
        let in_use = |waits| Some((Reason::new(Code::InUseByHost, "x"), waits));
        let scene = Scene { published: false, proven: false, trouble: in_use(true), ..Scene::served() };
        let waits = scene.decide();
        assert_eq!((waits.state, code(&waits), &waits.step), (State::Refused, Some(Code::InUseByHost), &None));
        let again = Scene { trouble: in_use(false), ..scene.clone() }.decide();
        assert_eq!((again.state, code(&again)), (State::Refused, Some(Code::InUseByHost)), "said until it is free");
        assert!(matches!(again.step, Some(Step::TryOpen(_))));
        let silent = Some((Reason::new(Code::HelperSilent, "x"), true));
        let silent = Scene { trouble: silent, ..scene.clone() }.decide();
        assert_eq!((silent.state, silent.step), (State::Exporting, None), "nobody knows: not served, and not refused");
        let free = Scene { trouble: None, free: true, ..scene }.decide();
        assert!(matches!(free.step, Some(Step::Publish(_))));
        assert_eq!(Scene { free: false, ..Scene::served() }.decide().step, None, "what is served is let be");
    }

    fn scenes() -> impl Strategy<Value = Scene> {
        let disk = (0..9_u8, any::<bool>()).prop_map(|(defect, settled)| {
            let mut disk = spoilt(|facts, identity| match defect {
                0 => facts.diskseq_after += 1,
                1 => facts.size_bytes = 0,
                2 => identity.uses.push(Use::HostDisk),
                3 => identity.link_target = LinkTarget::Missing,
                4 => identity.link_target = LinkTarget::Device(DEVNUM, 0),
                5 => identity.link_target = LinkTarget::Device(crate::device::DevNum { major: 1, minor: 1 }, 990),
                _ => {}
            });
            disk.settled = settled;
            (defect < 6, disk)
        });
        let mapping = 0..3_u8;
        (proptest::collection::vec(disk, 0..3), mapping, any::<[bool; 11]>()).prop_map(|(disks, mapping, flags)| {
            let [fresh, published, proven, unread, udevd_owes, up, trouble, retriggered, waits, told, free] = flags;
            let mapping = match mapping {
                0 => None,
                1 => Scene::served().mapping,
                _ => Scene::served().mapping.map(|mapping| Evidence { boot_id: "before".into(), ..mapping }),
            };
            Scene {
                mapping,
                present: disks.into_iter().map(|(_, disk)| disk).collect(),
                fresh,
                published,
                retriggered,
                told,
                free,
                proven: proven && published,
                unread,
                udevd_owes,
                server: Some(if up { Server::Up { pid: Some(1) } } else { Server::Down { why: String::new() } }),
                trouble: trouble.then(|| (Reason::new(Code::UseUnknown, "x"), waits)),
                ..Scene::new()
            }
        })
    }

    proptest! {
        /// Invariants 1, 4 and 7, for any situation. Only a disk is published or ready that passes every check, was
        /// read afresh, was reported by udev, and is recorded as it is. Anything else that is published is revoked.
        #[test]
        fn only_what_is_proven_is_published_or_ready(scene in scenes()) {
            let decision = scene.decide();
            let present: Vec<&Device> = scene.present.iter().collect();
            let sound = evidence::check(&ground(), &present, None, now()).and_then(Result::ok);
            let settled = present.iter().all(|disk| disk.settled);
            let on_record = sound.as_ref().zip(scene.mapping.as_ref()).is_some_and(|(now, then)| then.agrees(now));
            // The disk was not read since the start, and is not gone.
            let this_boot = scene.mapping.as_ref().is_some_and(|mapping| mapping.boot_id == ground().boot_id);
            let remembered = scene.unread && present.is_empty() && this_boot;
            let held = scene.unread && scene.published && (settled && on_record || remembered);
            let certain = scene.fresh && settled && !(scene.unread && present.len() == 1);
            if matches!(decision.step, Some(Step::Probe(_))) || decision.state == State::Ready {
                prop_assert!(certain && on_record || held, "{decision:?}");
            }
            if matches!(decision.step, Some(Step::Publish(_))) {
                prop_assert!(certain && on_record, "{decision:?}");
            }
            if held {
                prop_assert!(!decision.revoke, "{decision:?}");
            }
            if decision.state == State::Ready {
                let up = matches!(scene.server, Some(Server::Up { .. }));
                prop_assert!(scene.published && scene.proven && up);
            }
            if matches!(decision.step, Some(Step::Publish(_))) {
                prop_assert!(scene.free, "the kernel was not asked");
            }
            if matches!(decision.step, Some(Step::TryOpen(_))) {
                prop_assert!(certain && on_record && !scene.published, "asked about what is served, or not proven");
            }
            if matches!(decision.step, Some(Step::Record(_))) {
                prop_assert!(certain && sound.is_some() && !on_record);
            }
            if scene.published && !on_record && !remembered {
                prop_assert!(decision.revoke, "{decision:?}");
            }
            if decision.revoke {
                prop_assert!(scene.published, "there is something to take away");
            }
        }

        /// Doing what is decided ends, and deciding again then changes nothing.
        #[test]
        fn it_comes_to_rest_and_stays_there(mut scene in scenes()) {
            for _ in 0..9 {
                let decision = scene.decide();
                if !scene.carry_out(&decision) {
                    break;
                }
            }
            let rest = scene.decide();
            prop_assert!(rest.step.is_none() && !rest.revoke, "{rest:?}");
            prop_assert_eq!(scene.decide(), rest);
        }
    }
}
