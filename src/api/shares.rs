//! Slots for each limited resource, and each user's share of them. No user can take all slots from the others: a user
//! has at most a quarter of the slots, root half, and all users without root three quarters. So root's operator
//! always finds a slot.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The size limit of a request's head, in bytes.
pub(super) const HEAD_BYTES: usize = 16 * 1024;

/// The limit of header lines in a request.
pub(super) const HEADERS: usize = 64;

/// Stands for a user whose credentials could not be read.
const NOBODY_KNOWN: u32 = u32::MAX;

/// The number of users above which the semaphores of users without a slot are dropped.
const USERS: usize = 64;

/// The slots of one resource.
pub(super) struct Slots {
    total: usize,
    all: Arc<Semaphore>,
    /// The slots for all users but root.
    others: Arc<Semaphore>,
    users: Mutex<HashMap<u32, Arc<Semaphore>>>,
}

/// One slot, released when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    _user: OwnedSemaphorePermit,
    _others: Option<OwnedSemaphorePermit>,
    _all: OwnedSemaphorePermit,
}

impl Slots {
    /// Makes this many slots; `total` must be at least four.
    pub(super) fn new(total: usize) -> Self {
        let semaphore = |slots: usize| Arc::new(Semaphore::new(slots));
        Self { total, all: semaphore(total), others: semaphore(total / 4 * 3), users: Mutex::default() }
    }

    /// Returns how many slots a user may have at one time.
    pub(super) fn share(&self, uid: Option<u32>) -> usize {
        if uid == Some(0) { self.total / 2 } else { self.total / 4 }
    }

    /// Takes a slot if one is free.
    pub(super) fn try_take(&self, uid: Option<u32>) -> Option<Slot> {
        let user = self.of_user(uid).try_acquire_owned().ok()?;
        let others = match uid {
            Some(0) => None,
            _ => Some(Arc::clone(&self.others).try_acquire_owned().ok()?),
        };
        let all = Arc::clone(&self.all).try_acquire_owned().ok()?;
        Some(Slot { _user: user, _others: others, _all: all })
    }

    /// Waits for a slot, first come, first served. Never returns `None`, because the semaphores are never closed.
    pub(super) async fn take(&self, uid: Option<u32>) -> Option<Slot> {
        // A caller that waits for its own user's share holds none of the common slots.
        let user = self.of_user(uid).acquire_owned().await.ok()?;
        let others = match uid {
            Some(0) => None,
            _ => Some(Arc::clone(&self.others).acquire_owned().await.ok()?),
        };
        let all = Arc::clone(&self.all).acquire_owned().await.ok()?;
        Some(Slot { _user: user, _others: others, _all: all })
    }

    /// Waits until no slot is taken.
    pub(super) async fn all_free(&self) {
        let all = u32::try_from(self.total).unwrap_or(u32::MAX);
        let _ = self.all.acquire_many(all).await;
    }

    fn of_user(&self, uid: Option<u32>) -> Arc<Semaphore> {
        let share = self.share(uid);
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if users.len() > USERS {
            // A slot and each waiting caller hold a reference to the semaphore.
            users.retain(|_, slots| Arc::strong_count(slots) > 1);
        }
        Arc::clone(users.entry(uid.unwrap_or(NOBODY_KNOWN)).or_insert_with(|| Arc::new(Semaphore::new(share))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(slots: &Slots, uid: u32) -> Vec<Slot> {
        std::iter::from_fn(|| slots.try_take(Some(uid))).collect()
    }

    #[test]
    fn one_user_has_a_quarter_root_half_and_all_others_leave_root_a_quarter() {
        let slots = Slots::new(16);
        let held: Vec<Vec<Slot>> = (1..=5).map(|uid| fill(&slots, uid)).collect();
        assert_eq!(held.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 4, 0, 0]);
        assert_eq!(fill(&slots, 0).len(), 4, "what is left");
        drop(held);
        assert_eq!(fill(&slots, 0).len(), 8, "and no more than half");
        assert!(slots.try_take(None).is_some(), "who is not known is a user, too");
    }

    #[tokio::test]
    async fn a_waiting_user_gets_the_next_free_slot_and_delays_no_other_user() {
        let slots = Slots::new(4);
        let held = fill(&slots, 7);
        assert_eq!(held.len(), 1);
        let mut waiting = Box::pin(slots.take(Some(7)));
        let at_once = tokio::time::timeout(std::time::Duration::ZERO, &mut waiting).await;
        assert!(at_once.is_err(), "the control: its share is used up");
        assert!(slots.try_take(Some(8)).is_some());
        drop(held);
        assert!(waiting.await.is_some());
    }

    #[test]
    fn semaphores_of_users_without_slots_are_dropped() {
        let slots = Slots::new(4096);
        let kept = slots.try_take(Some(1));
        (2..10_000).for_each(|uid| drop(slots.try_take(Some(uid))));
        let users = slots.users.lock().unwrap();
        assert!(users.len() <= USERS + 1 && users.contains_key(&1), "{}", users.len());
        drop(kept);
    }
}
