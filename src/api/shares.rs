//! What can run out, and each user's share of it. One user, however busy, leaves places for the others, and root for its
//! operator: a user has at most a quarter of the places, root half, and all but root together three quarters.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of a request's head.
pub(super) const HEAD_BYTES: usize = 16 * 1024;

/// Header lines of a request.
pub(super) const HEADERS: usize = 64;

/// Whose credentials could not be read.
const NOBODY_KNOWN: u32 = u32::MAX;

/// Users that are kept count of before those that hold nothing are forgotten.
const USERS: usize = 64;

/// Places of one kind.
pub(super) struct Places {
    total: usize,
    all: Arc<Semaphore>,
    /// All users but root.
    others: Arc<Semaphore>,
    users: Mutex<HashMap<u32, Arc<Semaphore>>>,
}

/// One place; given back when dropped.
#[derive(Debug)]
pub(super) struct TakenPlace {
    _user: OwnedSemaphorePermit,
    _others: Option<OwnedSemaphorePermit>,
    _all: OwnedSemaphorePermit,
}

impl Places {
    /// So many, at least four.
    pub(super) fn new(total: usize) -> Self {
        let semaphore = |places: usize| Arc::new(Semaphore::new(places));
        Self { total, all: semaphore(total), others: semaphore(total / 4 * 3), users: Mutex::default() }
    }

    /// How many places a user may have at one time.
    pub(super) fn share(&self, uid: Option<u32>) -> usize {
        if uid == Some(0) { self.total / 2 } else { self.total / 4 }
    }

    /// A place, if there is one now.
    pub(super) fn try_take(&self, uid: Option<u32>) -> Option<TakenPlace> {
        let user = self.of_user(uid).try_acquire_owned().ok()?;
        let others = match uid {
            Some(0) => None,
            _ => Some(Arc::clone(&self.others).try_acquire_owned().ok()?),
        };
        let all = Arc::clone(&self.all).try_acquire_owned().ok()?;
        Some(TakenPlace { _user: user, _others: others, _all: all })
    }

    /// A place, as soon as there is one; first come, first served. `None` never happens: nobody closes the places.
    pub(super) async fn take(&self, uid: Option<u32>) -> Option<TakenPlace> {
        // Who waits for a place of its own user's holds none of the others'.
        let user = self.of_user(uid).acquire_owned().await.ok()?;
        let others = match uid {
            Some(0) => None,
            _ => Some(Arc::clone(&self.others).acquire_owned().await.ok()?),
        };
        let all = Arc::clone(&self.all).acquire_owned().await.ok()?;
        Some(TakenPlace { _user: user, _others: others, _all: all })
    }

    /// Returns when nobody has a place.
    pub(super) async fn all_free(&self) {
        let all = u32::try_from(self.total).unwrap_or(u32::MAX);
        let _ = self.all.acquire_many(all).await;
    }

    fn of_user(&self, uid: Option<u32>) -> Arc<Semaphore> {
        let share = self.share(uid);
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if users.len() > USERS {
            // A place, and who waits for one, keeps the semaphore.
            users.retain(|_, places| Arc::strong_count(places) > 1);
        }
        Arc::clone(users.entry(uid.unwrap_or(NOBODY_KNOWN)).or_insert_with(|| Arc::new(Semaphore::new(share))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(places: &Places, uid: u32) -> Vec<TakenPlace> {
        std::iter::from_fn(|| places.try_take(Some(uid))).collect()
    }

    #[test]
    fn one_user_has_a_quarter_root_half_and_all_others_leave_root_a_quarter() {
        let places = Places::new(16);
        let held: Vec<Vec<TakenPlace>> = (1..=5).map(|uid| fill(&places, uid)).collect();
        assert_eq!(held.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 4, 0, 0]);
        assert_eq!(fill(&places, 0).len(), 4, "what is left");
        drop(held);
        assert_eq!(fill(&places, 0).len(), 8, "and no more than half");
        assert!(places.try_take(None).is_some(), "who is not known is a user, too");
    }

    #[tokio::test]
    async fn who_waits_gets_the_place_that_becomes_free_and_holds_up_nobody_else() {
        let places = Places::new(4);
        let held = fill(&places, 7);
        assert_eq!(held.len(), 1);
        let mut waiting = Box::pin(places.take(Some(7)));
        let at_once = tokio::time::timeout(std::time::Duration::ZERO, &mut waiting).await;
        assert!(at_once.is_err(), "the control: its share is used up");
        assert!(places.try_take(Some(8)).is_some());
        drop(held);
        assert!(waiting.await.is_some());
    }

    #[test]
    fn users_that_hold_nothing_are_forgotten() {
        let places = Places::new(4096);
        let kept = places.try_take(Some(1));
        (2..10_000).for_each(|uid| drop(places.try_take(Some(uid))));
        let users = places.users.lock().unwrap();
        assert!(users.len() <= USERS + 1 && users.contains_key(&1), "{}", users.len());
        drop(kept);
    }
}
