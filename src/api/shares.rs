//! Slots for each limited resource, and each user's share of them. No user can take all slots from the others: a user
//! has at most a quarter of the slots, root half, and all users without root three quarters. So root's operator
//! always finds a slot. Callers from other hosts have a quarter together, and each of their addresses a sixteenth.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The size limit of a request's head, in bytes.
pub(super) const HEAD_BYTES: usize = 16 * 1024;

/// The limit of header lines in a request.
pub(super) const HEADERS: usize = 64;

/// Whose share a slot is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Owner {
    /// A user of this host.
    User(u32),
    /// A user of this host whose credentials could not be read.
    Unknown,
    /// Whoever calls from this address.
    Address(IpAddr),
}

/// The number of owners above which the semaphores of those without a slot are dropped.
const OWNERS: usize = 64;

/// The slots of one resource.
pub(super) struct Slots {
    total: usize,
    all: Arc<Semaphore>,
    /// The slots for all users but root.
    others: Arc<Semaphore>,
    /// The slots for all other hosts.
    hosts: Arc<Semaphore>,
    owners: Mutex<HashMap<Owner, Arc<Semaphore>>>,
}

/// One slot, released when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    _permits: Vec<OwnedSemaphorePermit>,
}

impl Slots {
    /// Makes this many slots; `total` must be at least four.
    pub(super) fn new(total: usize) -> Self {
        let semaphore = |slots: usize| Arc::new(Semaphore::new(slots));
        let (others, hosts) = (semaphore(total / 4 * 3), semaphore(total / 4));
        Self { total, all: semaphore(total), others, hosts, owners: Mutex::default() }
    }

    /// Returns how many slots an owner may have at one time.
    pub(super) fn share(&self, owner: Owner) -> usize {
        match owner {
            Owner::User(0) => self.total / 2,
            Owner::User(_) | Owner::Unknown => self.total / 4,
            Owner::Address(_) => (self.total / 16).max(1),
        }
    }

    /// Takes a slot if one is free.
    pub(super) fn try_take(&self, owner: Owner) -> Option<Slot> {
        let permits = self.shares_of(owner).into_iter().map(|share| share.try_acquire_owned().ok());
        Some(Slot { _permits: permits.collect::<Option<_>>()? })
    }

    /// Waits for a slot, first come, first served. Never returns `None`, because the semaphores are never closed.
    pub(super) async fn take(&self, owner: Owner) -> Option<Slot> {
        let mut permits = Vec::new();
        for share in self.shares_of(owner) {
            permits.push(share.acquire_owned().await.ok()?);
        }
        Some(Slot { _permits: permits })
    }

    /// Returns what a slot is taken of, the owner's own share first: a caller that waits for that holds none of the
    /// common slots.
    fn shares_of(&self, owner: Owner) -> Vec<Arc<Semaphore>> {
        let common = match owner {
            Owner::User(0) => vec![&self.all],
            Owner::User(_) | Owner::Unknown => vec![&self.others, &self.all],
            Owner::Address(_) => vec![&self.hosts, &self.others, &self.all],
        };
        std::iter::once(self.own(owner)).chain(common.into_iter().map(Arc::clone)).collect()
    }

    /// Waits until no slot is taken.
    pub(super) async fn all_free(&self) {
        let all = u32::try_from(self.total).unwrap_or(u32::MAX);
        let _ = self.all.acquire_many(all).await;
    }

    fn own(&self, owner: Owner) -> Arc<Semaphore> {
        let share = self.share(owner);
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        if owners.len() > OWNERS {
            // A slot and each waiting caller hold a reference to the semaphore.
            owners.retain(|_, slots| Arc::strong_count(slots) > 1);
        }
        Arc::clone(owners.entry(owner).or_insert_with(|| Arc::new(Semaphore::new(share))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(slots: &Slots, uid: u32) -> Vec<Slot> {
        std::iter::from_fn(|| slots.try_take(Owner::User(uid))).collect()
    }

    #[test]
    fn one_user_has_a_quarter_root_half_and_all_others_leave_root_a_quarter() {
        let slots = Slots::new(16);
        let held: Vec<Vec<Slot>> = (1..=5).map(|uid| fill(&slots, uid)).collect();
        assert_eq!(held.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 4, 0, 0]);
        assert_eq!(fill(&slots, 0).len(), 4, "what is left");
        drop(held);
        assert_eq!(fill(&slots, 0).len(), 8, "and no more than half");
        assert!(slots.try_take(Owner::Unknown).is_some(), "who is not known is a user, too");
    }

    #[test]
    fn other_hosts_have_a_quarter_together_and_each_address_a_sixteenth() {
        let slots = Slots::new(64);
        let from = |host: u8| Owner::Address([192, 0, 2, host].into());
        let fill = |owner| std::iter::from_fn(|| slots.try_take(owner)).collect::<Vec<_>>();
        let held: Vec<_> = (1..=5).map(|host| fill(from(host))).collect();
        assert_eq!(held.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 4, 4, 0]);
        assert_eq!(fill(Owner::User(7)).len(), 16, "a user of this host has its share all the same");
        assert_eq!(Slots::new(8).share(from(1)), 1, "never none");
    }

    #[tokio::test]
    async fn a_waiting_user_gets_the_next_free_slot_and_delays_no_other_user() {
        let slots = Slots::new(4);
        let held = fill(&slots, 7);
        assert_eq!(held.len(), 1);
        let mut waiting = Box::pin(slots.take(Owner::User(7)));
        let at_once = tokio::time::timeout(std::time::Duration::ZERO, &mut waiting).await;
        assert!(at_once.is_err(), "the control: its share is used up");
        assert!(slots.try_take(Owner::User(8)).is_some());
        drop(held);
        assert!(waiting.await.is_some());
    }

    #[test]
    fn semaphores_of_users_without_slots_are_dropped() {
        let slots = Slots::new(4096);
        let kept = slots.try_take(Owner::User(1));
        (2..10_000).for_each(|uid| drop(slots.try_take(Owner::User(uid))));
        let owners = slots.owners.lock().unwrap();
        assert!(owners.len() <= OWNERS + 1 && owners.contains_key(&Owner::User(1)), "{}", owners.len());
        drop(kept);
    }
}
