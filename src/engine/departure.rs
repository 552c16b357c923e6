//! A volume's way out of service: how far it is, by whose wish, who waits for the answer, and what is told of it. What follows
//! from each thing that can happen is decided in [`super::leaving`].

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::answers::Reply;
use super::leaving::{self, From, Leaving, Next, Outcome, Seal, Write};
use crate::helper_client::Holders;
use crate::identity::VolumeId;
use crate::reason::{Code, StoryStep};
use crate::volume::{By, Entry, Reason, State, User};

/// First and longest wait between two looks whether a lingering volume's clients are gone: nothing tells that by itself.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// A volume's way out of service.
#[derive(Default)]
pub(super) struct Departure {
    /// How far it is.
    pub(super) leaving: Leaving,
    /// By whose wish, if that is known: it may have been before the daemon's start.
    user: Option<User>,
    /// Who waits for the answer.
    reply: Option<Reply<Holders>>,
    /// When its clients are to be looked at again.
    look_at: Option<Instant>,
    /// The step that is on record as soon as what is being written is.
    entry: Option<Entry>,
    /// Its claim went meanwhile, or was not looked for, which is nobody's concern as long as the volume goes itself.
    pub(super) claim_unsure: bool,
    /// A section came meanwhile: a thread that prepared the export was later than the one that removed what was prepared.
    pub(super) section_came: bool,
}

/// What is to be put on record, in one transaction.
#[derive(Debug)]
pub(super) struct OnRecord {
    /// The step that is told.
    pub(super) entry: Option<Entry>,
    /// For whom it is sealed, and where it stands; `None`: its rows go.
    pub(super) stays: Option<(Option<By>, State, Option<Reason>)>,
}

/// What has become of the rest of a volume whose rows are gone.
pub(crate) struct Removed {
    /// What was prepared for its export.
    pub(super) prepared: std::io::Result<()>,
    pub(super) claim: std::io::Result<()>,
}

/// Who wants something of a volume, and waits for the answer.
pub(crate) struct Caller {
    pub(super) user: User,
    pub(super) reply: Reply<Holders>,
}

impl Departure {
    /// As the store remembers it.
    pub(super) fn remembered(sealed: Option<By>) -> Self {
        Self { leaving: leaving::remembered(sealed), ..Self::default() }
    }

    /// By whose wish its export is taken away, if that is known.
    pub(super) fn user(&self) -> Option<User> {
        self.user.filter(|_| self.leaving.is_closed())
    }

    /// When the clock is to be looked at.
    pub(super) fn look_at(&self) -> Option<Instant> {
        self.look_at.filter(|_| matches!(self.leaving, Leaving::Lingering { asking: false, .. }))
    }

    /// Why its export is not there.
    pub(super) fn reason(&self) -> Reason {
        match self.leaving.operation() {
            Some(operation) => {
                Reason::new(Code::Sealed, format!("its export was taken away for the operation {operation}"))
            }
            None => Reason::new(Code::BeingWithdrawn, "it is being withdrawn: its export was taken away"),
        }
    }

    /// The same when clients are connected, and it was withdrawn by force.
    pub(super) fn insisted(&self, clients: &Holders, server_unit: &str) -> Reason {
        let by = self.user.map(|user| format!(" by {user}")).unwrap_or_default();
        let message = format!("withdrawn by force{by} while NBD clients are connected: {clients}");
        Reason::about(Code::ClientsConnected, server_unit, message)
    }

    /// The step that is told when that is written, and its particulars.
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

    /// For what its export was taken away.
    pub(super) fn purpose(&self) -> String {
        let by = |user: Option<User>| user.map(|user| format!(" asked for by {user}")).unwrap_or_default();
        match (self.leaving.operation(), self.user) {
            (Some(operation), user) => format!("for the operation {operation}{}", by(user)),
            (None, None) => String::new(),
            (None, user) => format!("for the withdrawal{}", by(user)),
        }
    }

    /// Takes up a call that was let in: how far the volume is now, and who waits for the answer.
    pub(super) fn called(&mut self, leaving: &Leaving, caller: Caller) {
        self.reply = Some(caller.reply);
        // Who asks once more for what lingers did not ask first.
        if !matches!(leaving, Leaving::Lingering { .. }) {
            self.user = Some(caller.user);
        }
    }

    /// What follows from what has come of the last step.
    pub(super) fn next(&mut self, volume: VolumeId, outcome: Outcome) -> Next {
        if matches!(outcome, Outcome::Failed(_)) {
            self.entry = None;
        }
        leaving::next(volume, std::mem::take(&mut self.leaving), outcome)
    }

    /// Who waits for the answer; nobody does after that.
    pub(super) fn take_reply(&mut self) -> Option<Reply<Holders>> {
        self.reply.take()
    }

    /// Whether its claim is to be looked at: it stays, and the claim went meanwhile or was not looked for. Said once.
    pub(super) fn wants_claim(&mut self) -> bool {
        !self.leaving.may_go() && std::mem::take(&mut self.claim_unsure)
    }

    /// What is written for this act: the step that is told, whether and for whom the volume is sealed then, and where it stands.
    /// `given_back`: where it stands when it stays.
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

    /// The step that was written, to be told once.
    pub(super) fn take_entry(&mut self) -> Option<Entry> {
        self.entry.take()
    }

    /// A volume that lingers is to be looked at again in a while.
    pub(super) fn postpone(&mut self, now: Instant) {
        if let Leaving::Lingering { looks, .. } = self.leaving {
            let wait = (LOOK_AGAIN.0 * (1 << looks.saturating_sub(1).min(5))).min(LOOK_AGAIN.1);
            self.look_at = Some(now + wait);
        }
    }

    /// It stays after all: nothing of it is left, but who waits for the answer.
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
    fn what_is_written_for_a_seal_says_for_whom_and_is_told_once_and_only_if_it_was_written() {
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
    fn a_volume_that_lingers_is_looked_at_later_and_later_and_by_whose_wish_it_goes_does_not_change() {
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
    fn a_claim_that_went_meanwhile_is_looked_at_when_the_volume_stays() {
        let mut departure = Departure { claim_unsure: true, ..Departure::remembered(Some(By::Withdrawal)) };
        assert!(!departure.wants_claim(), "it goes");
        departure.leaving = Leaving::No;
        assert!(departure.wants_claim() && !departure.wants_claim());
    }
}
