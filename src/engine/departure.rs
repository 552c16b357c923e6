//! The withdrawal of a volume: how far it is, who asked for it, who waits for the answer, and what is reported.
//! [`super::leaving`] decides what follows from each event.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::answers::Reply;
use super::leaving::{self, From, Leaving, Next, Outcome, Seal, Write};
use crate::helper_client::Holders;
use crate::identity::VolumeId;
use crate::reason::{Code, StoryStep};
use crate::volume::{By, Entry, Reason, State, User};

/// The first and the longest wait between two checks whether a lingering volume's clients are gone. No event reports
/// that.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The withdrawal of a volume.
#[derive(Default)]
pub(super) struct Departure {
    /// How far the withdrawal is.
    pub(super) leaving: Leaving,
    /// Who asked for it, if that is known. It may have been before the daemon's start.
    user: Option<User>,
    /// The caller that waits for the answer.
    reply: Option<Reply<Holders>>,
    /// When the clients are checked again.
    look_at: Option<Instant>,
    /// The step that is recorded as soon as the running write is.
    entry: Option<Entry>,
    /// Whether the claim disappeared in between, or was not checked. That does not matter as long as the volume
    /// itself goes.
    pub(super) claim_unsure: bool,
    /// Whether a section appeared in between, because a thread that prepared the export was later than the one that
    /// removed the preparation.
    pub(super) section_came: bool,
}

/// What to record in one transaction.
#[derive(Debug)]
pub(super) struct OnRecord {
    /// The step that is reported.
    pub(super) entry: Option<Entry>,
    /// What seals the volume, and its state. `None`: its rows are deleted.
    pub(super) stays: Option<(Option<By>, State, Option<Reason>)>,
}

/// The result of removing the rest of a volume whose rows are deleted.
pub(crate) struct Removed {
    /// The result for what was prepared for its export.
    pub(super) prepared: std::io::Result<()>,
    pub(super) claim: std::io::Result<()>,
}

/// Who asks something about a volume, and waits for the answer.
pub(crate) struct Caller {
    pub(super) user: User,
    pub(super) reply: Reply<Holders>,
}

impl Departure {
    /// Returns the withdrawal that the store remembers.
    pub(super) fn remembered(sealed: Option<By>) -> Self {
        Self { leaving: leaving::remembered(sealed), ..Self::default() }
    }

    /// Returns who asked for the revocation of the export, if that is known.
    pub(super) fn user(&self) -> Option<User> {
        self.user.filter(|_| self.leaving.is_closed())
    }

    /// Returns when the timer must end.
    pub(super) fn look_at(&self) -> Option<Instant> {
        self.look_at.filter(|_| matches!(self.leaving, Leaving::Lingering { asking: false, .. }))
    }

    /// Returns why the export does not exist.
    pub(super) fn reason(&self) -> Reason {
        match self.leaving.operation() {
            Some(operation) => {
                Reason::new(Code::Sealed, format!("its export was taken away for the operation {operation}"))
            }
            None => Reason::new(Code::BeingWithdrawn, "it is being withdrawn: its export was taken away"),
        }
    }

    /// Returns the reason when clients are connected and the withdrawal was forced.
    pub(super) fn insisted(&self, clients: &Holders, server_unit: &str) -> Reason {
        let by = self.user.map(|user| format!(" by {user}")).unwrap_or_default();
        let message = format!("withdrawn by force{by} while NBD clients are connected: {clients}");
        Reason::about(Code::ClientsConnected, server_unit, message)
    }

    /// Returns the step that is reported when `write` is durable, and its details.
    fn told(&self, write: &Write) -> Option<(StoryStep, String)> {
        let by = self.user.map(|user| format!(" by {user}")).unwrap_or_default();
        let (event, who, clients) = match (write, &self.leaving) {
            (Write::Seal(operation), Leaving::Sealed(_, Seal::Recording { clients })) => {
                (StoryStep::Sealed, format!("for the operation {operation}{by}"), Some(clients))
            }
            (Write::Unseal(operation), _) => (StoryStep::Unsealed, format!("for the operation {operation}{by}"), None),
            (Write::Rows, Leaving::Going { from, clients }) => {
                let who = match from {
                    From::Lingering { .. } => format!("as asked for before, by force{by}"),
                    From::Withdrawal { force: true } => format!("by force{by}"),
                    From::Withdrawal { force: false } => by.trim_start().to_owned(),
                    From::Operation(operation) => format!("for the operation {operation}{by}"),
                };
                (StoryStep::Withdrawn, who, Some(clients))
            }
            _ => return None,
        };
        let connected = clients.filter(|clients| !clients.clients.is_empty());
        Some((event, connected.map_or(who.clone(), |clients| format!("{who}; connected: {clients}"))))
    }

    /// Returns for what the export was revoked.
    pub(super) fn purpose(&self) -> String {
        let by = |user: Option<User>| user.map(|user| format!(" asked for by {user}")).unwrap_or_default();
        match (self.leaving.operation(), self.user) {
            (Some(operation), user) => format!("for the operation {operation}{}", by(user)),
            (None, None) => String::new(),
            (None, user) => format!("for the withdrawal{}", by(user)),
        }
    }

    /// Takes a call that was admitted: how far the volume is now, and who waits for the answer.
    pub(super) fn called(&mut self, leaving: &Leaving, caller: Caller) {
        self.reply = Some(caller.reply);
        // A caller that repeats a forced withdrawal did not ask first.
        if !matches!(leaving, Leaving::Lingering { .. }) {
            self.user = Some(caller.user);
        }
    }

    /// Returns what follows from the result of the last step.
    pub(super) fn next(&mut self, volume: VolumeId, outcome: Outcome) -> Next {
        if matches!(outcome, Outcome::Failed(_)) {
            self.entry = None;
        }
        leaving::next(volume, std::mem::take(&mut self.leaving), outcome)
    }

    /// Returns the caller that waits for the answer. Nobody waits after that.
    pub(super) fn take_reply(&mut self) -> Option<Reply<Holders>> {
        self.reply.take()
    }

    /// Returns once whether the claim must be checked: the volume stays, and the claim disappeared in between or was
    /// not checked.
    pub(super) fn wants_claim(&mut self) -> bool {
        !self.leaving.may_go() && std::mem::take(&mut self.claim_unsure)
    }

    /// Returns what to write for this act: the step to report, whether and by what the volume is sealed then, and its
    /// state. `given_back` is the state if the volume stays.
    pub(super) fn record(&mut self, write: &Write, at: Timestamp, server_unit: &str, given_back: State) -> OnRecord {
        self.entry = self.told(write).map(|(event, detail)| Entry { at, event: event.into(), detail });
        let entry = self.entry.clone();
        let (sealed, state, reason) = match write {
            Write::Seal(operation) => (Some(By::Operation(*operation)), State::Detaching, Some(self.reason())),
            Write::Lingers(clients) => {
                (Some(By::Withdrawal), State::Detaching, Some(self.insisted(clients, server_unit)))
            }
            Write::Unseal(_) => (None, given_back, None),
            Write::Rows => return OnRecord { entry, stays: None },
        };
        OnRecord { entry, stays: Some((sealed, state, reason)) }
    }

    /// Returns the recorded step once, to be reported.
    pub(super) fn take_entry(&mut self) -> Option<Entry> {
        self.entry.take()
    }

    /// Schedules the next check of a volume that lingers.
    pub(super) fn postpone(&mut self, now: Instant) {
        if let Leaving::Lingering { looks, .. } = self.leaving {
            let wait = (LOOK_AGAIN.0 * (1 << looks.saturating_sub(1).min(5))).min(LOOK_AGAIN.1);
            self.look_at = Some(now + wait);
        }
    }

    /// Ends the withdrawal because the volume stays. Only the waiting caller remains.
    pub(super) fn give_back(&mut self) {
        *self = Self { reply: self.reply.take(), ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::super::answers::{Clients, Rejection};
    use super::super::leaving::{Act, Call};
    use super::*;
    use crate::identity::OperationId;
    use tokio::sync::oneshot;

    fn volume() -> VolumeId {
        "00000000-0000-4000-8000-000000000001".parse().unwrap()
    }

    fn operation() -> OperationId {
        "00000000-0000-4000-8000-000000000002".parse().unwrap()
    }

    fn called(departure: &mut Departure, call: Call, uid: u32) -> oneshot::Receiver<Result<Holders, Rejection>> {
        let (reply, answer) = oneshot::channel();
        let (leaving, _) = leaving::called(volume(), &departure.leaving, call).expect("let in");
        departure.called(&leaving, Caller { user: User(Some(uid)), reply });
        departure.leaving = leaving;
        answer
    }

    fn go_on(departure: &mut Departure, outcome: Outcome) -> Next {
        let next = departure.next(volume(), outcome);
        departure.leaving.clone_from(&next.leaving);
        next
    }

    fn nobody() -> Outcome {
        Outcome::Clients { clients: Clients::None, current: true }
    }

    #[test]
    fn a_recorded_seal_names_its_operation_and_is_reported_once_if_it_was_written() {
        for written in [true, false] {
            let mut departure = Departure::default();
            let _answer = called(&mut departure, Call::Seal { by: By::Operation(operation()), force: false }, 7);
            let Next { act: Act::Write(write), .. } = go_on(&mut departure, nobody()) else { panic!("sealed at once") };
            let record = departure.record(&write, Timestamp::UNIX_EPOCH, "nbdkit.service", State::Waiting);
            let entry = record.entry.expect("a step");
            assert_eq!(entry.event, StoryStep::Sealed.into());
            assert!(
                entry.detail.contains(&operation().to_string()) && entry.detail.contains("uid 7"),
                "{}",
                entry.detail
            );
            let (sealed, state, reason) = record.stays.expect("it stays");
            assert_eq!((sealed, state), (Some(By::Operation(operation())), State::Detaching));
            assert_eq!(reason.map(|reason| reason.code), Some(Code::Sealed));
            let outcome =
                if written { Outcome::Written } else { Outcome::Failed(Rejection::NotDurable("no room".to_owned())) };
            go_on(&mut departure, outcome);
            assert_eq!(departure.take_entry(), Some(entry).filter(|_| written));
            assert_eq!(departure.take_entry(), None);
        }
    }

    #[test]
    fn a_lingering_volume_is_checked_with_back_off_and_keeps_its_first_caller() {
        let mut departure = Departure::default();
        let _first = called(&mut departure, Call::Seal { by: By::Withdrawal, force: true }, 7);
        let clients = Holders { clients: vec!["10.0.0.1:5".to_owned()], exact: true };
        let connected = || Outcome::Clients { clients: Clients::Connected(clients.clone()), current: true };
        go_on(&mut departure, connected());
        go_on(&mut departure, Outcome::Written);
        let now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..7 {
            departure.postpone(now);
            waits.push(departure.look_at().expect("it is looked at") - now);
            go_on(&mut departure, Outcome::Look);
            assert_eq!(departure.look_at(), None, "it is being asked");
            go_on(&mut departure, connected());
        }
        assert_eq!((waits[0], waits[6]), LOOK_AGAIN);
        assert!(waits.is_sorted(), "{waits:?}");
        let _second = called(&mut departure, Call::Seal { by: By::Withdrawal, force: false }, 8);
        assert_eq!(departure.user(), Some(User(Some(7))));
        departure.give_back();
        assert_eq!((departure.user(), departure.take_reply().is_some()), (None, true), "who waits is still answered");
    }

    #[test]
    fn a_claim_that_disappeared_meanwhile_is_checked_when_the_volume_stays() {
        let mut departure = Departure { claim_unsure: true, ..Departure::remembered(Some(By::Withdrawal)) };
        assert!(!departure.wants_claim(), "it goes");
        departure.leaving = Leaving::No;
        assert!(departure.wants_claim() && !departure.wants_claim());
    }
}
