//! Intents that are not durable yet: who waits for the answer, and what remains of refused intents.

use std::collections::{BTreeMap, BTreeSet};

use super::answers::{Accepted, Rejection, Reply};
use super::leaving::Leaving;
use crate::config::Limits;
use crate::device::facts::Facts;
use crate::identity::{Serial, VolumeId};
use crate::store::Change;
use crate::volume::{Intent, User};

/// All intents that are not durable yet.
#[derive(Default)]
pub(super) struct Admissions {
    pending: BTreeMap<VolumeId, Admission>,
    /// Refused intents whose rows are still to be deleted.
    leftovers: BTreeSet<VolumeId>,
}

/// An intent that is not durable yet.
pub(super) struct Admission {
    intent: Intent,
    /// What is written in the same transaction.
    also: Vec<Change>,
    /// The caller that asked first.
    first: Reply<Accepted>,
    /// Callers that have asked for the same since.
    others: Vec<Reply<Accepted>>,
    /// Whether a claim of its serial may exist, whoever added it.
    claim_unsure: bool,
}

/// Why an intent was not accepted.
pub(crate) enum NotAdmitted {
    /// Refused for this reason, and nothing of it remains.
    Refused(Rejection),
    /// Refused for this reason, and its row could not be deleted.
    Left(Rejection),
    /// The claim failed for this reason, and the intent may be recorded.
    Unclaimed(String),
}

impl NotAdmitted {
    pub(super) fn unclaimed(why: &impl ToString) -> Self {
        Self::Unclaimed(why.to_string())
    }
}

/// What a new intent is compared with.
pub(super) struct Standing<'a> {
    /// The intent of the same volume, if it is wanted already, and how far its withdrawal is.
    pub(super) known: Option<(&'a Intent, &'a Leaving)>,
    /// The volume that has the serial.
    pub(super) of_serial: Option<VolumeId>,
    /// How many volumes are wanted.
    pub(super) all: usize,
    /// How many of them this user wants.
    pub(super) of_user: usize,
    /// The limits.
    pub(super) limits: Limits,
    /// The id of this host's own VM, for an intent that names none.
    pub(super) vm_id: &'a str,
}

/// What to do about the remaining row of a refused intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leftover {
    /// Nothing: an accepted intent has taken the row over.
    Nothing,
    /// Wait, because another request for the same volume is being admitted.
    Wait,
    /// Delete the row.
    Delete,
}

impl Admissions {
    /// Handles an intent. Returns whether it must be admitted now. Otherwise the answer is given, or comes with
    /// another intent's.
    ///
    /// The order of the checks is: is the volume known already; is it being admitted; does its serial belong to
    /// another volume; are there too many intents.
    pub(super) fn ask(
        &mut self,
        (mut intent, also): (Intent, Vec<Change>),
        reply: Reply<Accepted>,
        standing: &Standing<'_>,
    ) -> bool {
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
                None => pending.others.push(reply),
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
        self.pending.insert(volume, Admission { intent, also, first: reply, others: Vec::new(), claim_unsure: false });
        true
    }

    /// Returns why one more intent of this user is too many.
    fn too_many(&self, uid: Option<u32>, standing: &Standing<'_>) -> Option<Rejection> {
        let limits = standing.limits;
        let all = standing.all + self.pending.len();
        if all >= limits.intents as usize {
            return Some(Rejection::TooMany { whose: "on this host".to_owned(), used: all, limit: limits.intents });
        }
        let own = standing.of_user + self.pending.values().filter(|pending| pending.intent.uid == uid).count();
        // Root is not limited, because root writes the limits.
        let over = uid != Some(0) && own >= limits.intents_per_user as usize;
        over.then(|| Rejection::TooMany {
            whose: format!("of {}", User(uid)),
            used: own,
            limit: limits.intents_per_user,
        })
    }

    /// Returns the intent of a volume that is being admitted.
    pub(super) fn intent(&self, volume: VolumeId) -> Option<&Intent> {
        self.pending.get(&volume).map(|pending| &pending.intent)
    }

    /// Returns the same, with what is written in the same transaction.
    pub(super) fn to_write(&self, volume: VolumeId) -> Option<(&Intent, &[Change])> {
        self.pending.get(&volume).map(|pending| (&pending.intent, pending.also.as_slice()))
    }

    /// Returns the volume of this serial that is being admitted.
    pub(super) fn of(&self, serial: Serial) -> Option<VolumeId> {
        self.pending.keys().find(|pending| pending.serial() == serial).copied()
    }

    /// Returns every volume that is being admitted.
    pub(super) fn volumes(&self) -> impl Iterator<Item = VolumeId> {
        self.pending.keys().copied()
    }

    /// Marks the claims of all intents as unsure, because a restoration of the claims starts and leaves these as they
    /// are.
    pub(super) fn doubt_claims(&mut self) {
        self.pending.values_mut().for_each(|pending| pending.claim_unsure = true);
    }

    /// Records that a claim of this volume has appeared.
    pub(super) fn claim_came(&mut self, volume: VolumeId) {
        if let Some(pending) = self.pending.get_mut(&volume) {
            pending.claim_unsure = true;
        }
    }

    /// Ends the admission, and returns the callers to answer.
    pub(super) fn end(&mut self, volume: VolumeId) -> Option<Admission> {
        self.pending.remove(&volume)
    }

    /// Records that the row of a refused intent could not be deleted. Returns whether that is new.
    pub(super) fn left(&mut self, volume: VolumeId) -> bool {
        self.leftovers.insert(volume)
    }

    /// Records that no row remains, or that the row is an accepted intent's now.
    pub(super) fn not_left(&mut self, volume: VolumeId) {
        self.leftovers.remove(&volume);
    }

    /// Returns what to do when the deletion of such a row is due again.
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
    /// Returns whether a claim may remain that belongs to nobody when this is the answer.
    pub(super) fn leaves_claim(&self, answer: &Result<Accepted, Rejection>) -> bool {
        self.claim_unsure && answer.is_err()
    }

    /// Answers all callers.
    pub(super) fn answer(self, answer: &Result<Accepted, Rejection>) {
        let _ = self.first.send(answer.clone());
        for reply in self.others {
            let _ = reply.send(answer.clone().map(|_| Accepted::Known));
        }
    }
}

/// Returns how the host uses the volume's disk, if one of these disks is the volume's and is used.
pub(super) fn uses(volume: VolumeId, disks: &[Facts]) -> Option<String> {
    disks.iter().find_map(|disk| {
        let identity = disk.identity.as_ref().ok().filter(|identity| identity.serial == volume.serial())?;
        let uses: Vec<String> = identity.uses.iter().map(ToString::to_string).collect();
        (!uses.is_empty()).then(|| format!("/dev/{} is {}", disk.name, uses.join(", ")))
    })
}

/// Returns the first field in which a repeated request differs. A field that the request leaves out does not differ.
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

/// Describes an intent in words.
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
        (admissions.ask((intent, Vec::new()), reply, standing), answer)
    }

    /// Invariant 8.
    #[test]
    fn a_repeated_pending_intent_gets_the_same_answer_and_a_different_one_the_difference() {
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
    fn the_answer_for_a_known_volume_depends_on_its_withdrawal() {
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

    /// Invariant 15. Intents that are not durable yet count.
    #[test]
    fn the_limits_of_intents_count_pending_intents_too() {
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
    fn a_serial_has_at_most_one_wanted_or_pending_volume() {
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
    fn the_row_of_a_refused_intent_is_deleted_unless_the_volume_is_wanted_again() {
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
    fn a_claim_that_appeared_meanwhile_is_checked_when_the_intent_is_refused() {
        let mut admissions = Admissions::default();
        let refused = Err(Rejection::NotDurable("x".to_owned()));
        ask(&mut admissions, intent(id(1), 7), &nobody());
        ask(&mut admissions, intent(id(2), 7), &nobody());
        admissions.claim_came(id(1));
        let [came, not] = [1, 2].map(|n| admissions.end(id(n)).unwrap());
        assert!(came.leaves_claim(&refused) && !came.leaves_claim(&Ok(Accepted::New)) && !not.leaves_claim(&refused));
    }
}
