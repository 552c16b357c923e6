//! The task, with a target in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use proptest::strategy::{Strategy, ValueTree};

use super::*;
use crate::store::Owed;

/// A target in memory, whose behaviour the test chooses.
#[derive(Clone, Default)]
pub(super) struct Memory(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    rows: BTreeMap<VolumeId, ShownVolume>,
    away: bool,
    panics: bool,
    hangs: bool,
    refuses: BTreeSet<VolumeId>,
    writes: usize,
}

impl Target<Rows> for Memory {
    async fn write(&mut self, rows: &[Rows], _: &mut Follower) -> Result<(), TargetError> {
        if self.0.lock().unwrap().hangs {
            std::future::pending::<()>().await;
        }
        let mut inner = self.0.lock().unwrap();
        inner.writes += 1;
        let panics = std::mem::take(&mut inner.panics);
        if panics {
            drop(inner);
            panic!("the test wants a panic");
        }
        if inner.away {
            return Err(TargetError::Away("it is away".into()));
        }
        if let Some(row) = rows.iter().find(|row| inner.refuses.contains(&row.volume)) {
            return Err(TargetError::Refused(format!("not {}", row.volume)));
        }
        for Rows { volume, present } in rows.iter().cloned() {
            match present {
                Some(present) => drop(inner.rows.insert(volume, present)),
                None => drop(inner.rows.remove(&volume)),
            }
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_target_that_is_away_costs_one_row_per_changed_volume_and_gets_everything_later() {
    let folder = StoreFolder::new();
    let target = Memory::default();
    let running = folder.start_in(target.clone()).await;
    running.store.write((1..=3).flat_map(|n| ready(volume(n))).collect()).await.unwrap();
    running.until_shown().await;
    assert_eq!(target.0.lock().unwrap().rows.len(), 3, "the control");
    target.0.lock().unwrap().away = true;
    for _ in 0..50 {
        for state in [State::Lost, State::Ready] {
            running.store.write((1..=3).map(|n| stand(volume(n), state)).collect()).await.unwrap();
        }
    }
    running.store.write(vec![Change::Withdraw(volume(3))]).await.unwrap();
    let following = running.until("told", |following| following.progress.failure.is_some()).await;
    assert_eq!(following.owed, Some(Owed { records: 3, set_aside: 0 }));
    assert_eq!(following.progress.failure.as_deref(), Some("it is away"));
    let behind = following.progress.behind_since.unwrap();
    assert!(behind <= clock::wall());
    let mut other = folder.other().await;
    assert_eq!(text(&mut other, OWED).await.len(), 3, "300 changes of three volumes");
    assert_eq!(running.store.pulse().await.failure, None);

    // The same after the daemon was killed.
    running.kill().await;
    let running = folder.start_in(target.clone()).await;
    running.until("told", |following| following.progress.failure.is_some()).await;
    target.0.lock().unwrap().away = false;
    running.until_shown().await;
    let following = running.until("it works", |following| following.progress.behind_since.is_none()).await;
    assert_eq!(following.progress.failure, None);
    assert_eq!(target.0.lock().unwrap().rows.keys().copied().collect::<Vec<_>>(), [volume(1), volume(2)]);
}

/// A target that is away ends its task by itself. A target that hangs is given up after three seconds.
#[tokio::test]
async fn the_end_does_not_wait_for_a_target_that_is_away_or_hangs_and_the_next_start_writes_the_rows() {
    for hangs in [false, true] {
        let folder = StoreFolder::new();
        let target = Memory::default();
        let running = folder.start_in(target.clone()).await;
        running.until("it has begun", |following| following.owed.is_some()).await;
        {
            let mut inner = target.0.lock().unwrap();
            (inner.away, inner.hangs) = (true, hangs);
        }
        running.store.write(ready(volume(1))).await.unwrap();
        let Running { store, closing, following, .. } = running;
        drop(store);
        closing.await.unwrap();
        if hangs {
            assert!(!following.is_finished(), "the store closed although the target's write has not ended");
            following.abort();
            assert!(following.await.unwrap_err().is_cancelled());
        } else {
            following.await.expect("the task has ended by itself");
        }
        *target.0.lock().unwrap() = Inner::default();
        folder.start_in(target.clone()).await.stop().await;
        assert_eq!(target.0.lock().unwrap().rows.len(), 1);
    }
}

/// A defect of attachd is reported as long as the store runs.
#[tokio::test]
async fn a_panic_of_the_task_is_reported_and_affects_nothing_else() {
    let folder = StoreFolder::new();
    let target = Memory::default();
    let running = folder.start_in(target.clone()).await;
    running.until("it has begun", |following| following.owed.is_some()).await;
    assert_eq!(running.following().await.progress.failure, None, "the control");
    target.0.lock().unwrap().panics = true;
    running.store.write(ready(volume(1))).await.unwrap();
    let following = running.until("told", |following| following.progress.failure.is_some()).await;
    assert!(following.progress.failure.unwrap().contains("has ended"));
    running.store.write(ready(volume(2))).await.unwrap();
    running.kill().await;
}

#[tokio::test]
async fn a_change_that_the_rows_do_not_show_writes_nothing() {
    let folder = StoreFolder::new();
    let target = Memory::default();
    let running = folder.start_in(target.clone()).await;
    running.store.write(ready(volume(1))).await.unwrap();
    running.until_shown().await;
    let writes = target.0.lock().unwrap().writes;
    // These changes show in no row: an intent without a disk comes and goes.
    for _ in 0..20 {
        running.store.write(vec![intend(volume(2)), stand(volume(2), State::Expired)]).await.unwrap();
        running.store.write(vec![Change::Withdraw(volume(2))]).await.unwrap();
    }
    running.store.write(vec![stand(volume(1), State::Lost)]).await.unwrap();
    running.until_shown().await;
    assert_eq!(target.0.lock().unwrap().writes, writes + 1, "one write, for the last change");
}

#[derive(Debug, Clone)]
enum Step {
    Map(u32),
    Stand(u32, State),
    Withdraw(u32),
    Away(bool),
    Refuse(u32),
    TakeAll,
    Restart,
    CatchUp,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    use proptest::prelude::*;
    let states = proptest::sample::select(State::ALL.to_vec());
    let step = prop_oneof![
        4 => (0..4_u32).prop_map(Step::Map),
        6 => (0..4_u32, states).prop_map(|(n, state)| Step::Stand(n, state)),
        2 => (0..4_u32).prop_map(Step::Withdraw),
        1 => any::<bool>().prop_map(Step::Away),
        1 => (0..4_u32).prop_map(Step::Refuse),
        1 => Just(Step::TakeAll),
        1 => Just(Step::Restart),
        2 => Just(Step::CatchUp),
    ];
    proptest::collection::vec(step, 1..40)
}

/// Whatever the steps are, and whatever the target refuses in between: in the end it shows the records.
#[tokio::test]
async fn after_any_steps_the_target_shows_the_records() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..24 {
        let steps = steps().new_tree(&mut runner).unwrap().current();
        let folder = StoreFolder::new();
        let target = Memory::default();
        let mut running = folder.start_in(target.clone()).await;
        for step in &steps {
            let changes = match step.clone() {
                Step::Map(n) => vec![intend(volume(n)), map(volume(n))],
                Step::Stand(n, state) => vec![stand(volume(n), state)],
                Step::Withdraw(n) => vec![Change::Withdraw(volume(n))],
                Step::Away(away) => {
                    target.0.lock().unwrap().away = away;
                    continue;
                }
                Step::Refuse(n) => {
                    target.0.lock().unwrap().refuses.insert(volume(n));
                    continue;
                }
                Step::TakeAll => {
                    target.0.lock().unwrap().refuses.clear();
                    continue;
                }
                Step::Restart => {
                    running.kill().await;
                    running = folder.start_in(target.clone()).await;
                    continue;
                }
                Step::CatchUp => {
                    if !target.0.lock().unwrap().away {
                        running.until_shown().await;
                    }
                    continue;
                }
            };
            running.store.write(changes).await.unwrap();
        }
        {
            let mut inner = target.0.lock().unwrap();
            (inner.away, inner.refuses) = (false, BTreeSet::new());
        }
        running.until("nothing is owed", |following| following.owed == Some(Owed { records: 0, set_aside: 0 })).await;
        running.stop().await;
        let (_store, _closing, records) = folder.open().await;
        let expected: BTreeMap<VolumeId, ShownVolume> = records
            .iter()
            .filter_map(|record| rows(record).present.map(|present| (record.intent.volume, present)))
            .collect();
        assert_eq!(target.0.lock().unwrap().rows, expected, "{steps:?}");
    }
}
