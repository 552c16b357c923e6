//! What the calls so far have shown of CloudStack. No call is made for this.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::error::{CallError, Refusal};
use crate::clock::Steady;

/// What is known from the calls so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// When CloudStack last answered, whatever it said.
    pub last_answer: Option<Timestamp>,
    /// What it last refused: when, which command, and how.
    pub last_refusal: Option<(Timestamp, &'static str, Refusal)>,
    /// Why calls fail; `None` after a call that succeeded or was refused for itself.
    pub trouble: Option<Trouble>,
    /// When the call began that decided on `trouble`. Calls go side by side, and a result that comes late says nothing
    /// about the time after its call began.
    decided: Option<Steady>,
    /// How many calls there were, by command and outcome.
    pub calls: BTreeMap<(&'static str, Outcome), u64>,
}

/// A cause for which calls fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Since when.
    pub since: Timestamp,
    /// What kind it is.
    pub kind: TroubleKind,
    /// The text of the last error.
    pub why: String,
}

/// The kinds of cause that health tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TroubleKind {
    /// There is no answer.
    Unreachable,
    /// The service manager keeps attachd from connecting.
    KeptIn,
    /// The keys or other files of this host cannot be used.
    NotAble,
    /// CloudStack does not let us in.
    NotLetIn,
    /// What answers is not understood.
    NotUnderstood,
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// With an answer.
    Answered,
    /// With a refusal.
    Refused,
    /// CloudStack wants no calls for a while.
    Throttled,
    /// Without an answer that is understood.
    Failed,
}

impl Outcome {
    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::Throttled => "throttled",
            Self::Failed => "failed",
        }
    }
}

impl Seen {
    /// Takes the result of a call into account. `kept_in`: the service manager did not allow the connection.
    pub(super) fn note<T>(
        &mut self,
        command: &'static str,
        result: &Result<T, CallError>,
        kept_in: bool,
        (began, now): (Steady, Timestamp),
    ) {
        use super::error::RefusalKind::NotLetIn;
        let (outcome, trouble) = match result {
            Ok(_) => (Outcome::Answered, None),
            Err(CallError::Refused(refusal)) => {
                self.last_refusal = Some((now, command, refusal.clone()));
                (Outcome::Refused, (refusal.kind == NotLetIn).then_some(TroubleKind::NotLetIn))
            }
            Err(CallError::Throttled { .. }) => (Outcome::Throttled, None),
            Err(CallError::Unreachable { .. }) if kept_in => (Outcome::Failed, Some(TroubleKind::KeptIn)),
            Err(CallError::Unreachable { .. }) => (Outcome::Failed, Some(TroubleKind::Unreachable)),
            Err(CallError::NotAble { .. }) => (Outcome::Failed, Some(TroubleKind::NotAble)),
            Err(CallError::NotUnderstood { .. }) => (Outcome::Failed, Some(TroubleKind::NotUnderstood)),
        };
        if outcome != Outcome::Failed {
            self.last_answer = Some(now);
        }
        *self.calls.entry((command, outcome)).or_default() += 1;
        if self.decided > Some(began) {
            return;
        }
        self.decided = Some(began);
        let since = self.trouble.as_ref().map_or(now, |before| before.since);
        let why = || result.as_ref().err().map(ToString::to_string).unwrap_or_default();
        self.trouble = trouble.map(|kind| Trouble { since, kind, why: why() });
    }

    /// Other settings are used from now on: what earlier calls met says nothing about these.
    pub(super) fn begin_anew(&mut self, now: Steady) {
        (self.trouble, self.decided) = (None, Some(now));
    }
}

#[cfg(test)]
mod tests {
    use super::super::error::Sent;
    use super::super::refusal::SaidIn;
    use super::*;

    #[test]
    fn trouble_begins_with_the_first_call_that_fails_and_ends_with_an_answer() {
        let (mut seen, mut second) = (Seen::default(), 0);
        let mut note = |seen: &mut Seen, result: Result<(), CallError>| {
            second += 1;
            let began = Steady::from_micros(second);
            seen.note("listVolumes", &result, false, (began, Timestamp::from_second(second).unwrap()));
        };
        let away = || Err(CallError::Unreachable { sent: Sent::No, why: "away".into() });
        note(&mut seen, away());
        note(&mut seen, away());
        let trouble = seen.trouble.clone().unwrap();
        assert_eq!((trouble.since.as_second(), trouble.kind), (1, TroubleKind::Unreachable));
        assert_eq!(seen.last_answer, None);
        let refused = |http| Err(CallError::Refused(Refusal::said(SaidIn::Call, http, None, "no")));
        note(&mut seen, refused(431));
        assert_eq!((seen.trouble.clone(), seen.last_answer.unwrap().as_second()), (None, 3), "it has answered");
        note(&mut seen, refused(401));
        assert_eq!(seen.trouble.as_ref().unwrap().kind, TroubleKind::NotLetIn);
        note(&mut seen, Ok(()));
        assert_eq!(seen.trouble, None);
        assert_eq!(seen.last_refusal.as_ref().unwrap().0.as_second(), 4, "the refusal stays to be read");
        assert_eq!(seen.calls[&("listVolumes", Outcome::Failed)], 2);
    }

    #[test]
    fn a_late_result_of_an_earlier_call_or_of_earlier_settings_changes_no_trouble() {
        let mut seen = Seen::default();
        let note = |seen: &mut Seen, began, result: &Result<(), CallError>| {
            seen.note("listVolumes", result, false, (Steady::from_micros(began), Timestamp::UNIX_EPOCH));
            seen.trouble.is_some()
        };
        let away = Err(CallError::Unreachable { sent: Sent::No, why: "away".into() });
        assert!(!note(&mut seen, 2, &Ok(())));
        assert!(!note(&mut seen, 1, &away), "it began before the call that succeeded");
        assert!(note(&mut seen, 3, &away), "the control: it began after it");
        assert!(note(&mut seen, 2, &Ok(())), "nor does a late success end it");
        seen.begin_anew(Steady::from_micros(5));
        assert!(!note(&mut seen, 4, &away), "it was made with other settings");
        assert!(note(&mut seen, 5, &away), "the control: with these");
    }
}
