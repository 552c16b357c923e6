//! Intents on their way to being durable: who waits for the answer, and what is left of those that were refused.

use std::collections::{BTreeMap, BTreeSet};

use super::answers::{Accepted, Rejection, Reply};
use super::leaving::Leaving;
use crate::config::Limits;
use crate::device::facts::Facts;
use crate::identity::{Serial, VolumeId};
use crate::volume::{Intent, User};

/// All of them.
#[derive(Default)]
pub(super) struct Admissions {
    pending: BTreeMap<VolumeId, Admission>,
    /// Refused intents whose rows are still to be deleted.
    leftovers: BTreeSet<VolumeId>,
}

/// An intent on its way to being durable.
pub(super) struct Admission {
    intent: Intent,
    /// Who asked for it.
    first: Reply<Accepted>,
    /// Who has asked for the same meanwhile.
    also: Vec<Reply<Accepted>>,
    /// A claim of its serial may be there, from whomever.
    claim_unsure: bool,
}

/// An intent was not accepted.
pub(crate) enum NotAdmitted {
    /// For this reason, and nothing is left of it.
    Refused(Rejection),
    /// For this reason, and its row could not be deleted.
    Left(Rejection),
    /// It has no claim, for this reason, and is perhaps on record.
    Unclaimed(String),
}

impl NotAdmitted {
    pub(super) fn unclaimed(why: &impl ToString) -> Self {
        Self::Unclaimed(why.to_string())
    }
}

/// What a new intent is held against.
pub(super) struct Standing<'a> {
    /// The same volume, if it is wanted already: its intent, and how far it is on its way out.
    pub(super) known: Option<(&'a Intent, &'a Leaving)>,
    /// The volume that has the serial.
    pub(super) of_serial: Option<VolumeId>,
    /// How many volumes are wanted.
    pub(super) all: usize,
    /// How many of them by this user.
    pub(super) of_user: usize,
    /// How many there may be.
    pub(super) limits: Limits,
    /// This host's own VM, for an intent that names none.
    pub(super) vm_id: &'a str,
}

/// What is to be done about a row that is left of a refused intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leftover {
    /// Nothing: an accepted intent has taken it over.
    Nothing,
    /// The same volume is just being asked for: wait for that.
    Wait,
    /// Delete it.
    Delete,
}

impl Admissions {
    /// Somebody wants a volume. Says whether it is to be admitted now; else the answer is given, or comes with another's.
    ///
    /// In this order: is it known already; is it on its way; does its serial belong to another; are there too many.
    pub(super) fn ask(&mut self, mut intent: Intent, reply: Reply<Accepted>, standing: &Standing<'_>) -> bool {
        let volume = intent.volume;
        if let Some((known, leaving)) = standing.known {
            let answer = match leaving.operation().filter(|_| leaving.is_closed()) {
                Some(operation) => Err(Rejection::Sealed { volume, operation }),
                None if leaving.is_closed() => Err(Rejection::Leaving(volume)),
                None => differs(known, &intent).map_or(Ok(Accepted::Known), Err),
            };
            let _ = reply.send(answer);
            return false;
        }
        if let Some(pending) = self.pending.get_mut(&volume) {
            match differs(&pending.intent, &intent) {
                Some(rejection) => drop(reply.send(Err(rejection))),
                None => pending.also.push(reply),
            }
            return false;
        }
        let serial = intent.serial();
        let taken = standing.of_serial.or_else(|| self.of(serial));
        let taken = taken.map(|have| Rejection::SerialTaken { asked: volume, have, serial });
        if let Some(rejection) = taken.or_else(|| self.too_many(intent.uid, standing)) {
            let _ = reply.send(Err(rejection));
            return false;
        }
        if intent.vm_id.is_empty() {
            standing.vm_id.clone_into(&mut intent.vm_id);
        }
        self.pending.insert(volume, Admission { intent, first: reply, also: Vec::new(), claim_unsure: false });
        true
    }

    /// Why one more intent of this user is too many.
    fn too_many(&self, uid: Option<u32>, standing: &Standing<'_>) -> Option<Rejection> {
        let limits = standing.limits;
        let all = standing.all + self.pending.len();
        if all >= limits.intents as usize {
            return Some(Rejection::TooMany { whose: "on this host".to_owned(), used: all, limit: limits.intents });
        }
        let own = standing.of_user + self.pending.values().filter(|pending| pending.intent.uid == uid).count();
        // Root writes the limits.
        let over = uid != Some(0) && own >= limits.intents_per_user as usize;
        over.then(|| Rejection::TooMany {
            whose: format!("of {}", User(uid)),
            used: own,
            limit: limits.intents_per_user,
        })
    }

    /// The intent of a volume that is on its way.
    pub(super) fn intent(&self, volume: VolumeId) -> Option<&Intent> {
        self.pending.get(&volume).map(|pending| &pending.intent)
    }

    /// The volume of this serial that is on its way.
    pub(super) fn of(&self, serial: Serial) -> Option<VolumeId> {
        self.pending.keys().find(|pending| pending.serial() == serial).copied()
    }

    /// Every volume that is on its way.
    pub(super) fn volumes(&self) -> impl Iterator<Item = VolumeId> {
        self.pending.keys().copied()
    }

    /// The claims are looked at now, and what is on its way is left as it is.
    pub(super) fn doubt_claims(&mut self) {
        self.pending.values_mut().for_each(|pending| pending.claim_unsure = true);
    }

    /// A claim of this volume has come.
    pub(super) fn claim_came(&mut self, volume: VolumeId) {
        if let Some(pending) = self.pending.get_mut(&volume) {
            pending.claim_unsure = true;
        }
    }

    /// It is on its way no more: who is to be answered.
    pub(super) fn end(&mut self, volume: VolumeId) -> Option<Admission> {
        self.pending.remove(&volume)
    }

    /// The row of a refused intent could not be deleted. Says whether that is new.
    pub(super) fn left(&mut self, volume: VolumeId) -> bool {
        self.leftovers.insert(volume)
    }

    /// No row is left of it, or it is an accepted intent's now.
    pub(super) fn not_left(&mut self, volume: VolumeId) {
        self.leftovers.remove(&volume);
    }

    /// It is time to delete such a row once more.
    pub(super) fn leftover(&self, volume: VolumeId) -> Leftover {
        match (self.leftovers.contains(&volume), self.pending.contains_key(&volume)) {
            (false, _) => Leftover::Nothing,
            (true, true) => Leftover::Wait,
            (true, false) => Leftover::Delete,
        }
    }

    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.leftovers.is_empty()
    }

    #[cfg(test)]
    pub(super) fn is_left(&self, volume: VolumeId) -> bool {
        self.leftovers.contains(&volume)
    }
}

impl Admission {
    /// Whether a claim may have been left for nobody, when this is the answer.
    pub(super) fn leaves_claim(&self, answer: &Result<Accepted, Rejection>) -> bool {
        self.claim_unsure && answer.is_err()
    }

    /// Answers everybody who waits.
    pub(super) fn answer(self, answer: &Result<Accepted, Rejection>) {
        let _ = self.first.send(answer.clone());
        for reply in self.also {
            let _ = reply.send(answer.clone().map(|_| Accepted::Known));
        }
    }
}

/// How the host uses the volume's disk, if one of these disks is it and the host does.
pub(super) fn uses(volume: VolumeId, disks: &[Facts]) -> Option<String> {
    disks.iter().find_map(|disk| {
        let identity = disk.identity.as_ref().ok().filter(|identity| identity.serial == volume.serial())?;
        let uses: Vec<String> = identity.uses.iter().map(ToString::to_string).collect();
        (!uses.is_empty()).then(|| format!("/dev/{} is {}", disk.name, uses.join(", ")))
    })
}

/// The first field in which a repeated request asks for something else. What it leaves out, it does not ask for.
fn differs(have: &Intent, asked: &Intent) -> Option<Rejection> {
    let number = |value: Option<u64>| value.map_or_else(|| "unset".to_owned(), |value| value.to_string());
    let fields = [
        (!asked.vm_id.is_empty(), "vm_id", have.vm_id.clone(), asked.vm_id.clone()),
        (asked.size_bytes.is_some(), "size_bytes", number(have.size_bytes), number(asked.size_bytes)),
        (
            asked.deadline_seconds.is_some(),
            "deadline_seconds",
            number(have.deadline_seconds.map(u64::from)),
            number(asked.deadline_seconds.map(u64::from)),
        ),
    ];
    fields.into_iter().find(|(named, _, have, asked)| *named && have != asked).map(|(_, field, have, asked_value)| {
        Rejection::Differs { volume: asked.volume, field, have, asked: asked_value }
    })
}

/// An intent in words.
pub(super) fn described(intent: &Intent) -> String {
    let mut words = Vec::new();
    if !intent.vm_id.is_empty() {
        words.push(format!("VM {}", intent.vm_id));
    }
    words.extend(intent.size_bytes.map(|size| format!("at least {size} bytes")));
    words.extend(intent.deadline_seconds.map(|seconds| format!("within {seconds} s")));
    words.push(format!("by {}", User(intent.uid)));
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{By, sample};
    use tokio::sync::oneshot;

    const LIMITS: Limits = Limits { intents: 3, intents_per_user: 2 };

    fn id(n: u32) -> VolumeId {
        format!("{n:08x}-0000-4000-8000-000000000001").parse().unwrap()
    }

    fn intent(volume: VolumeId, uid: u32) -> Intent {
        Intent { vm_id: String::new(), uid: Some(uid), ..sample::intent(volume) }
    }

    fn nobody() -> Standing<'static> {
        Standing { known: None, of_serial: None, all: 0, of_user: 0, limits: LIMITS, vm_id: "own" }
    }

    type Answer = oneshot::Receiver<Result<Accepted, Rejection>>;

    fn ask(admissions: &mut Admissions, intent: Intent, standing: &Standing<'_>) -> (bool, Answer) {
        let (reply, answer) = oneshot::channel();
        (admissions.ask(intent, reply, standing), answer)
    }

    /// Invariant 8.
    #[test]
    fn who_asks_for_the_same_meanwhile_gets_the_same_answer_and_for_something_else_is_told_what_differs() {
        let mut admissions = Admissions::default();
        let (begins, mut first) = ask(&mut admissions, intent(id(1), 7), &nobody());
        assert!(begins && admissions.intent(id(1)).is_some_and(|intent| intent.vm_id == "own"));
        let (begins, mut same) = ask(&mut admissions, intent(id(1), 8), &nobody());
        assert!(!begins && same.try_recv().is_err(), "it waits");
        let other = Intent { size_bytes: Some(5), ..intent(id(1), 7) };
        let (_, mut other) = ask(&mut admissions, other, &nobody());
        assert!(matches!(other.try_recv(), Ok(Err(Rejection::Differs { field: "size_bytes", .. }))));
        admissions.end(id(1)).unwrap().answer(&Ok(Accepted::New));
        assert_eq!((first.try_recv(), same.try_recv()), (Ok(Ok(Accepted::New)), Ok(Ok(Accepted::Known))));
        assert!(admissions.is_idle());
    }

    #[test]
    fn a_volume_that_is_known_is_answered_by_how_far_it_is() {
        let mut admissions = Admissions::default();
        let operation = "00000000-0000-4000-8000-000000000009".parse().unwrap();
        let known = intent(id(1), 7);
        let mut asked = |leaving: &Leaving| {
            let standing = Standing { known: Some((&known, leaving)), ..nobody() };
            let (begins, mut answer) = ask(&mut admissions, intent(id(1), 7), &standing);
            assert!(!begins);
            answer.try_recv().unwrap()
        };
        assert_eq!(asked(&Leaving::No), Ok(Accepted::Known));
        let sealed = super::super::leaving::remembered(Some(By::Operation(operation)));
        assert_eq!(asked(&sealed), Err(Rejection::Sealed { volume: id(1), operation }));
        assert_eq!(asked(&super::super::leaving::remembered(Some(By::Withdrawal))), Err(Rejection::Leaving(id(1))));
    }

    /// Invariant 15. What is on its way counts.
    #[test]
    fn nobody_gets_more_than_may_be_also_while_intents_are_on_their_way() {
        let mut admissions = Admissions::default();
        let one = Standing { all: 1, of_user: 1, ..nobody() };
        assert!(ask(&mut admissions, intent(id(1), 7), &one).0);
        let (begins, mut refused) = ask(&mut admissions, intent(id(2), 7), &one);
        assert!(!begins && matches!(refused.try_recv(), Ok(Err(Rejection::TooMany { used: 2, limit: 2, .. }))));
        let (begins, _) = ask(&mut admissions, intent(id(2), 8), &Standing { all: 1, ..nobody() });
        assert!(begins, "the control: another user");
        let (begins, mut refused) = ask(&mut admissions, intent(id(3), 0), &Standing { all: 1, ..nobody() });
        assert!(!begins && matches!(refused.try_recv(), Ok(Err(Rejection::TooMany { used: 3, limit: 3, .. }))));
    }

    /// Invariant 7.
    #[test]
    fn a_serial_has_one_volume_wanted_or_on_its_way() {
        let mut admissions = Admissions::default();
        let twin: VolumeId = "00000001-0000-4000-8000-00000000ffff".parse().unwrap();
        assert_eq!(twin.serial(), id(1).serial());
        assert!(ask(&mut admissions, intent(id(1), 7), &nobody()).0);
        let (_, mut refused) = ask(&mut admissions, intent(twin, 7), &nobody());
        assert!(matches!(refused.try_recv(), Ok(Err(Rejection::SerialTaken { have, .. })) if have == id(1)));
        assert_eq!(admissions.of(twin.serial()), Some(id(1)));
        admissions.end(id(1));
        let standing = Standing { of_serial: Some(id(1)), ..nobody() };
        assert!(!ask(&mut admissions, intent(twin, 7), &standing).0);
        assert!(ask(&mut admissions, intent(twin, 7), &nobody()).0, "the control");
    }

    #[test]
    fn a_row_that_is_left_is_deleted_unless_the_volume_is_wanted_again() {
        let mut admissions = Admissions::default();
        assert_eq!(admissions.leftover(id(1)), Leftover::Nothing);
        assert!(admissions.left(id(1)) && !admissions.left(id(1)));
        assert_eq!(admissions.leftover(id(1)), Leftover::Delete);
        ask(&mut admissions, intent(id(1), 7), &nobody());
        assert_eq!(admissions.leftover(id(1)), Leftover::Wait);
        admissions.not_left(id(1));
        assert_eq!(admissions.leftover(id(1)), Leftover::Nothing);
    }

    #[test]
    fn a_claim_that_came_meanwhile_is_looked_at_when_the_intent_is_refused() {
        let mut admissions = Admissions::default();
        let refused = Err(Rejection::NotDurable("x".to_owned()));
        ask(&mut admissions, intent(id(1), 7), &nobody());
        ask(&mut admissions, intent(id(2), 7), &nobody());
        admissions.claim_came(id(1));
        let [came, not] = [1, 2].map(|n| admissions.end(id(n)).unwrap());
        assert!(came.leaves_claim(&refused) && !came.leaves_claim(&Ok(Accepted::New)) && !not.leaves_claim(&refused));
    }
}
