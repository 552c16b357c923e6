//! Decides of which kind a refusal is. Pure.
//!
//! The codes decide. Where one code stands for several kinds, the words do, and what no rule covers is [`RefusalKind::Other`].
//! A kind is a hint for what to say and whether to wait; what is true is asked of CloudStack.

use std::time::Duration;

use jiff::Timestamp;

use super::error::{Refusal, RefusalKind};
use super::words::one_line;

/// Where CloudStack says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SaidIn {
    /// The answer to the call itself.
    Call,
    /// The result of a job.
    Job,
}

/// The largest difference between the clocks that is not reported.
const SKEW: Duration = Duration::from_mins(1);

impl Refusal {
    /// Makes a refusal from its codes and CloudStack's own text.
    pub(super) fn said(place: SaidIn, http: u16, code: Option<u32>, text: &str) -> Self {
        let words = one_line(text);
        let words = if words.is_empty() { "it says no more".to_owned() } else { words };
        Self { kind: kind(place, http, code, &words.to_lowercase()), words, http, code, hint: None }
    }

    /// Adds what the server's clock shows, if the refusal is about the key.
    pub(super) fn with_clocks(mut self, server: Option<Timestamp>, ours: Timestamp) -> Self {
        if self.kind == RefusalKind::NotLetIn {
            self.hint = Some(not_let_in(server, ours));
        }
        self
    }
}

/// Describes the possible causes: CloudStack does not tell them apart.
fn not_let_in(server: Option<Timestamp>, ours: Timestamp) -> String {
    let can_be = "the key or its secret is wrong, expired, not valid yet, or of a user who is locked";
    let Some(server) = server else { return format!("{can_be}; or the clocks differ (its own is not told)") };
    let differ = ours.duration_since(server);
    if differ.unsigned_abs() <= SKEW {
        return format!("{can_be}; the clocks agree");
    }
    let (seconds, way) = (differ.unsigned_abs().as_secs(), if differ.is_positive() { "ahead of" } else { "behind" });
    format!(
        "this host's clock is {seconds} s {way} CloudStack's, and a call is good for 10 minutes: set the clock right"
    )
}

fn kind(place: SaidIn, http: u16, code: Option<u32>, words: &str) -> RefusalKind {
    let says = |any: &[&str]| any.iter().any(|part| words.contains(part));
    // A missing permission has codes of its own.
    if matches!(code, Some(4365 | 4555)) {
        return RefusalKind::NotAllowed;
    }
    match http {
        401 if says(&["does not exist", "not available", "not allowed"]) => RefusalKind::NotAllowed,
        401 | 411 | 511 => RefusalKind::NotLetIn,
        403 | 432 | 531 => RefusalKind::NotAllowed,
        404 => RefusalKind::Gone,
        405 | 430 => RefusalKind::Invalid,
        // A 429 of the call itself is `Throttled` and does not come here.
        429 | 503 | 534 => RefusalKind::Busy,
        431 => invalid(place, &says),
        532 | 533 | 535 => RefusalKind::Limit,
        536 | 537 => RefusalKind::Conflict,
        _ => match code {
            Some(4285 | 4300 | 4380 | 4385 | 4540) => RefusalKind::Busy,
            Some(4350) => invalid(place, &says),
            Some(4280 | 4320..=4340 | 4370) => RefusalKind::Limit,
            Some(4375 | 4550) => RefusalKind::Conflict,
            _ if says(&["concurrent operation", "there is other active", "another job"]) => RefusalKind::Busy,
            _ => RefusalKind::Other,
        },
    }
}

/// CloudStack has one code for things that do not exist, wrong values, exceeded limits and wrong states.
fn invalid(place: SaidIn, says: &dyn Fn(&[&str]) -> bool) -> RefusalKind {
    if says(&["entity does not exist", "unable to find", "could not find", "doesn't exist", "does not exist"]) {
        RefusalKind::Gone
    } else if says(&["permission", "not authorized"]) {
        RefusalKind::NotAllowed
    } else if says(&["maximum number", "exceed", "limit"]) {
        RefusalKind::Limit
    } else if place == SaidIn::Job || says(&["already", "state", "please specify a v", "snapshot", "backup", "protect"])
    {
        // A job's parameters were parsed before it began, so the state of what they name is wrong.
        RefusalKind::Conflict
    } else {
        RefusalKind::Invalid
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use RefusalKind::{Busy, Conflict, Gone, Invalid, Limit, NotAllowed, NotLetIn, Other};
    use SaidIn::{Call, Job};
    use proptest::prelude::*;

    /// CloudStack's own texts.
    #[test]
    fn each_refusal_has_its_kind() {
        for (place, http, code, text, kind) in [
            (Call, 401, None, "unable to verify user credentials and/or request signature", NotLetIn),
            (Call, 401, None, "The given command 'x' either does not exist, is not available for user.", NotAllowed),
            (Call, 432, None, "Unknown API command: x", NotAllowed),
            (Call, 531, Some(4365), "Acct[1] does not have permission to operate with resource Vol[2]", NotAllowed),
            (
                Call,
                431,
                Some(9999),
                "Unable to execute API command attachvolume due to invalid value. Invalid parameter id value=x due to \
                 incorrect long value format, or entity does not exist or due to incorrect parameter annotation for the \
                 field in api cmd class.",
                Gone,
            ),
            (Call, 431, Some(4350), "Unable to find volume with ID: 7", Gone),
            (Call, 431, Some(9999), "Unable to execute API command deletevolume due to missing parameter id", Invalid),
            (Call, 431, Some(4350), "Please specify a volume that is not attached to any VM.", Conflict),
            (Call, 431, Some(4350), "Unable to delete the volume: it has delete protection, state x", Conflict),
            (Job, 431, None, "This volume is already attached to a VM.", Conflict),
            (Job, 431, None, "Please specify a VM that is either running or stopped.", Conflict),
            (Job, 431, None, "The specified volume is not attached to a VM.", Conflict),
            (Job, 431, None, "The specified VM already has the maximum number of data disks (6) attached.", Limit),
            (Job, 530, None, "Failed to attach volume x to VM y; org.libvirt.LibvirtException", Other),
            (Call, 530, Some(4300), "x", Busy),
            (Call, 530, Some(4250), "Unable to schedule async job for command x", Other),
            (Call, 532, None, "Maximum number of resources of type 'volume' exceeded", Limit),
            (Call, 533, Some(4340), "x", Limit),
            (Call, 503, None, "Maintenance or Shutdown has been initiated. Can not accept new jobs", Busy),
            (Call, 999, Some(1), "", Other),
        ] {
            let refusal = Refusal::said(place, http, code, text);
            assert_eq!(refusal.kind, kind, "{place:?} {refusal}");
        }
    }

    #[test]
    fn clocks_that_differ_are_told_when_we_are_not_let_in() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let refusal = |server: Option<&str>| {
            let said = Refusal::said(Call, 401, None, "unable to verify user credentials");
            said.with_clocks(server.map(at), at("2026-11-28T13:00:00Z")).hint.unwrap()
        };
        assert!(refusal(Some("2026-11-28T13:00:30Z")).contains("clocks agree"));
        assert!(refusal(Some("2026-11-28T13:20:00Z")).contains("1200 s behind"));
        assert!(refusal(Some("2026-11-28T12:40:00Z")).contains("1200 s ahead of"));
        assert!(refusal(None).contains("is not told"));
        let other = Refusal::said(Call, 431, None, "x").with_clocks(None, Timestamp::UNIX_EPOCH);
        assert_eq!(other.hint, None, "a clock explains nothing else");
    }

    proptest! {
        #[test]
        fn whatever_is_said_has_a_kind(http in any::<u16>(), code in any::<Option<u32>>(), text in any::<String>()) {
            for place in [Call, Job] {
                let refusal = Refusal::said(place, http, code, &text);
                prop_assert!(!refusal.words.is_empty());
            }
        }
    }
}
