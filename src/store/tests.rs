use sqlx::sqlite::SqliteConnection;

use super::sample::{StoreFolder, run};
use super::*;
use crate::clock::{self, Steady};
use crate::device::evidence::Evidence;
use crate::device::facts::sample;
use crate::identity::OperationId;
use crate::reason::{Code, StoryStep};
use crate::volume::{By, Intent, IntentOrigin, State};

fn proven() -> Evidence {
    sample::evidence()
}

fn intent() -> Intent {
    crate::volume::sample::intent(sample::volume())
}

fn operation(n: u32) -> OperationId {
    format!("{n:08x}-0000-4000-8000-000000000000").parse().unwrap()
}

fn note(n: i64) -> News {
    let at = jiff::Timestamp::from_microsecond(n).unwrap();
    News::Note(Entry { at, event: StoryStep::Lost.into(), detail: n.to_string() })
}

#[tokio::test]
async fn an_intent_takes_over_the_row_that_a_refused_one_has_left() {
    let folder = StoreFolder::new();
    let (store, task, _) = folder.open().await;
    let left =
        Intent { size_bytes: Some(7), deadline_seconds: Some(9), vm_id: "other".into(), uid: Some(4), ..intent() };
    store.write(vec![Change::Intend(left.clone())]).await.unwrap();
    let accepted = intent();
    assert_ne!(left, accepted, "the control");
    store.write(vec![Change::Intend(accepted.clone())]).await.unwrap();
    drop(store);
    task.await.unwrap();
    let (_store, _task, records) = folder.open().await;
    assert_eq!(records.into_iter().map(|record| record.intent).collect::<Vec<_>>(), [accepted]);
}

async fn stored(store: &Store, volume: VolumeId) -> Vec<Entry> {
    store.reader.timeline(volume).await.unwrap()
}

/// Waits until such a row exists.
async fn until(connection: &mut SqliteConnection, rows: &'static str) {
    let mut looks = tokio::time::interval(Duration::from_millis(20));
    for _ in 0..500 {
        looks.tick().await;
        if !sqlx::query(rows).fetch_all(&mut *connection).await.unwrap().is_empty() {
            return;
        }
    }
    panic!("no row: {rows}");
}

#[tokio::test]
async fn while_another_program_holds_the_lock_writes_fail_in_time_reads_succeed_and_news_are_written_later() {
    let folder = StoreFolder::new();
    let (store, _task, _) = folder.open().await;
    let volume = sample::volume();
    store.write(vec![Change::Intend(intent()), Change::News(volume, note(1))]).await.unwrap();
    let mut other = folder.other().await;
    run(&mut other, "BEGIN IMMEDIATE").await;

    let begun = std::time::Instant::now();
    let writers = (0..8).map(|_| store.write(vec![Change::Map(volume, proven())]));
    let answers = futures_util::future::join_all(writers).await;
    assert!(
        answers.iter().all(|answer| answer.as_ref().is_err_and(|error| error.code() == Code::StoreBusy)),
        "{answers:?}"
    );
    assert!(begun.elapsed() < SILENT_AFTER, "{:?}", begun.elapsed());
    store.post(volume, vec![note(2)]);
    assert_eq!(
        store.story(volume).await.entries.len(),
        2,
        "what is on record can be read, and what is not yet is shown"
    );
    let failure = store.pulse().await.failure.unwrap();
    assert_eq!(failure.code(), Code::StoreBusy);

    let mut condition = store.condition();
    condition.mark_unchanged();
    run(&mut other, "ROLLBACK").await;
    condition.wait_for(Option::is_none).await.unwrap();
    assert_eq!(stored(&store, volume).await.len(), 2, "what nobody waited for is made up for");
    store.write(vec![Change::Map(volume, proven())]).await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_removed_or_replaced_is_noticed_without_a_write_refuses_all_writes_and_is_saved() {
    for replaced in [None, Some("a stranger's")] {
        let folder = StoreFolder::new();
        let (store, task, _) = folder.open().await;
        let volume = sample::volume();
        store.write(vec![Change::Intend(intent()), Change::News(volume, note(1))]).await.unwrap();
        let mut condition = store.condition();
        let aside = folder.path().join("aside");
        match replaced {
            None => std::fs::rename(folder.file(), &aside).unwrap(),
            Some(content) => {
                std::fs::write(folder.path().join("new"), content).unwrap();
                std::fs::rename(folder.path().join("new"), folder.file()).unwrap();
            }
        }
        let saved =
            |failure: &Option<StoreError>| matches!(failure, Some(StoreError::Lost { saved: Saved::As(_), .. }));
        let failure = condition.wait_for(saved).await.unwrap().clone();
        let Some(StoreError::Lost { saved: Saved::As(copy), what, .. }) = failure else { panic!("{failure:?}") };
        assert_eq!(what, if replaced.is_some() { "was replaced by another file" } else { "was removed" });
        let refused = store.write(vec![Change::Withdraw(volume)]).await.unwrap_err();
        assert_eq!(refused.code(), Code::StoreLost);
        assert!(refused.to_string().contains(copy.to_str().unwrap()), "{refused}");
        assert_eq!(store.pulse().await.failure.unwrap().code(), Code::StoreLost);
        if replaced.is_some() {
            drop(store);
            task.await.unwrap();
            assert_eq!(std::fs::read_to_string(folder.file()).unwrap(), "a stranger's", "it is left alone");
        } else {
            std::fs::rename(&aside, folder.file()).unwrap();
            condition.wait_for(Option::is_none).await.unwrap();
            store.write(vec![Change::Map(volume, proven())]).await.expect("it is back in its place");
            drop(store);
            task.await.unwrap();
        }
        assert_eq!(rescue::saved(&folder.file()), std::slice::from_ref(&copy));
        // Where no file has the store's name, the copy is renamed to it and has everything. A log that was left is
        // not its own.
        std::fs::remove_file(folder.file()).unwrap();
        std::fs::write(folder.path().join("attachd.db-wal"), "of the store before").unwrap();
        let (store, _task, records) = folder.open().await;
        assert_eq!(records.len(), 1);
        assert_eq!(stored(&store, volume).await.len(), 1);
    }
}

/// What was written last is only in the log.
#[tokio::test]
async fn a_log_that_is_removed_is_noticed_before_the_next_answer() {
    let folder = StoreFolder::new();
    let (store, _task, _) = folder.open().await;
    std::fs::remove_file(folder.path().join("attachd.db-wal")).unwrap();
    let refused = store.write(vec![Change::Intend(intent())]).await.unwrap_err();
    assert_eq!(refused.code(), Code::StoreLost);
    assert!(refused.to_string().contains("attachd.db-wal was removed"), "{refused}");
}

/// Invariant 14.
#[tokio::test]
async fn every_number_and_time_reads_back_exactly_after_a_restart() {
    use proptest::strategy::{Strategy, ValueTree};
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let edges = proptest::prop_oneof![
        proptest::sample::select(vec![0, 1, (1 << 53) + 1, (1 << 63) - 1, 1 << 63, u64::MAX]),
        proptest::num::u64::ANY
    ];
    let seconds = proptest::option::of(proptest::num::u32::ANY);
    let micros = -377_705_023_201_000_000..253_402_207_200_999_999_i64;
    let all = (proptest::array::uniform4(edges), seconds, proptest::array::uniform3(micros));
    let folder = StoreFolder::new();
    let mut written = Vec::new();
    let (store, task, _) = folder.open().await;
    for n in 0..200_u32 {
        let ([size, diskseq, bytes, _], deadline_seconds, [created, proven_at, since]) =
            all.new_tree(&mut runner).unwrap().current();
        let time = |micros| jiff::Timestamp::from_microsecond(micros).unwrap();
        let volume: VolumeId = format!("{n:08x}-1b59-4f62-97e8-cefffdfe3804").parse().unwrap();
        let record = Record {
            intent: Intent {
                volume,
                // The API accepts no larger size.
                size_bytes: Some(size & u64::MAX >> 1).filter(|size| *size > 0),
                deadline_seconds,
                deadline: Intent::deadline_from(Steady::now(), deadline_seconds),
                created_at: time(created),
                uid: Some(n),
                origin: if n % 2 == 0 { IntentOrigin::Announced } else { IntentOrigin::Operation(operation(n)) },
                ..intent()
            },
            mapping: Some(Evidence { diskseq, size_bytes: bytes, at: time(proven_at), ..proven() }),
            state: State::Ready,
            reason: None,
            since: Some(time(since)),
            sealed: [None, Some(By::Withdrawal), Some(By::Operation(operation(n)))][n as usize % 3],
        };
        let changes = vec![
            Change::Intend(record.intent.clone()),
            Change::Map(volume, record.mapping.clone().unwrap()),
            Change::News(volume, News::Stand(record.state, None, time(since))),
            Change::Seal(volume, record.sealed),
        ];
        store.write(changes).await.unwrap();
        written.push(record);
    }
    drop(store);
    task.await.unwrap();
    let (_store, _task, read) = folder.open().await;
    assert_eq!(read, written);
}

#[tokio::test]
async fn after_a_reboot_a_waiting_volume_has_the_time_left_that_was_recorded() {
    let folder = StoreFolder::new();
    let seconds = Some(1000);
    let waits = |records: &[Record]| records[0].intent.deadline.unwrap();
    let asked = Intent::deadline_from(Steady::now(), seconds);
    let (store, task, _) = folder.open_in("first").await;
    let waiting = Intent { deadline_seconds: seconds, deadline: asked, ..intent() };
    store.write(vec![Change::Intend(waiting)]).await.unwrap();
    drop(store);
    task.await.unwrap();
    let (store, task, records) = folder.open_in("first").await;
    assert_eq!(records[0].intent.deadline, asked, "the same boot: exactly");
    drop(store);
    task.await.unwrap();

    // Pretends another boot's clock: only the time that was left counts.
    run(&mut folder.other().await, "UPDATE intents SET waits_until = 1, waits_left = 42000000, waits_boot = 'second'")
        .await;
    let (_store, _task, records) = folder.open_in("third").await;
    let left = waits(&records).left(Steady::now());
    assert!(left <= Duration::from_secs(42) && left > Duration::from_secs(30), "{left:?}");
}

#[tokio::test]
async fn a_deadline_recorded_by_an_earlier_version_is_kept_and_never_extended() {
    for (created, expected) in [(-400, 600), (5_000_000, 1000), (-5_000_000, 0)] {
        let folder = StoreFolder::new();
        let (store, task, _) = folder.open().await;
        let created_at = clock::wall() + jiff::SignedDuration::from_secs(created);
        store
            .write(vec![Change::Intend(Intent { deadline_seconds: Some(1000), created_at, ..intent() })])
            .await
            .unwrap();
        drop(store);
        task.await.unwrap();
        run(&mut folder.other().await, "UPDATE intents SET waits_boot = NULL, waits_until = NULL, since = NULL").await;
        let (_store, _task, records) = folder.open().await;
        let left = records[0].intent.deadline.unwrap().left(Steady::now()).as_secs();
        assert!(left <= expected && left + 12 >= expected, "{left} for {created}");
        assert_eq!(records[0].since, None);
    }
}

#[tokio::test]
async fn an_endless_timeline_keeps_its_first_and_last_entries_and_shows_the_gap() {
    let folder = StoreFolder::new();
    let (store, _task, _) = folder.open().await;
    let volume = sample::volume();
    for n in (0..5000).step_by(500) {
        store.write((n..n + 500).map(|n| Change::News(volume, note(n))).collect()).await.unwrap();
    }
    let story = stored(&store, volume).await;
    assert!((1001..1001 + 61).contains(&story.len()), "{}", story.len());
    let details: Vec<&str> = story.iter().map(|entry| &*entry.detail).collect();
    assert_eq!((details[0], details[99], details[story.len() - 1]), ("0", "99", "4999"));
    assert_eq!(story[100].event, StoryStep::LeftOut.into());
    assert!(story[101].detail.parse::<i64>().unwrap() > 4000);
}

#[tokio::test]
async fn old_history_is_deleted_while_the_daemon_runs_and_that_of_wanted_volumes_is_kept() {
    let folder = StoreFolder::new();
    let (store, _task, _) = folder.open().await;
    let (wanted, gone): (VolumeId, VolumeId) =
        (sample::volume(), "00000001-1b59-4f62-97e8-cefffdfe3804".parse().unwrap());
    let days_ago = |days: i64| {
        News::Note(Entry {
            at: clock::wall() - jiff::SignedDuration::from_hours(24 * days),
            event: StoryStep::Lost.into(),
            detail: days.to_string(),
        })
    };
    let mut changes = vec![Change::Intend(intent()), Change::News(wanted, days_ago(100))];
    changes.extend([89, 91].map(|days| Change::News(gone, days_ago(days))));
    store.write(changes).await.unwrap();
    assert_eq!(stored(&store, gone).await.len(), 2, "the control");
    store.tidy();
    until(&mut folder.other().await, "SELECT 1 WHERE 2 = (SELECT count(*) FROM timeline)").await;
    let kept = stored(&store, gone).await;
    assert_eq!(kept.iter().map(|entry| &*entry.detail).collect::<Vec<_>>(), ["89"]);
    assert_eq!(stored(&store, wanted).await.len(), 1);
}

/// A volume's state alone seals nothing. A late state must not withdraw a volume at the next start.
#[tokio::test]
async fn only_the_recorded_seal_seals_a_volume() {
    let folder = StoreFolder::new();
    let (store, task, _) = folder.open().await;
    let volume = sample::volume();
    let detaching = || Change::News(volume, News::Stand(State::Detaching, None, clock::wall()));
    let by = Some(By::Operation(operation(1)));
    store.write(vec![Change::Intend(intent()), detaching(), Change::Seal(volume, by)]).await.unwrap();
    drop(store);
    task.await.unwrap();
    let (store, task, records) = folder.open().await;
    assert_eq!(records[0].sealed, by, "the control");
    store.write(vec![Change::Seal(volume, None), detaching()]).await.unwrap();
    drop(store);
    task.await.unwrap();
    let (.., records) = folder.open().await;
    assert_eq!((records[0].state, records[0].sealed), (State::Detaching, None));
}

/// Earlier versions recorded this only as the state.
#[tokio::test]
async fn a_forced_withdrawal_recorded_by_an_earlier_version_is_completed() {
    let folder = StoreFolder::new();
    let (store, task, _) = folder.open().await;
    let stand = |state| Change::News(sample::volume(), News::Stand(state, None, clock::wall()));
    store.write(vec![Change::Intend(intent()), stand(State::Detaching)]).await.unwrap();
    drop(store);
    task.await.unwrap();
    let mut other = folder.other().await;
    for undo in [
        "ALTER TABLE intents DROP COLUMN sealed_by",
        "ALTER TABLE intents DROP COLUMN operation_id",
        "DELETE FROM _sqlx_migrations WHERE version = 3",
    ] {
        run(&mut other, undo).await;
    }
    drop(other);
    let (.., records) = folder.open().await;
    assert_eq!(records[0].sealed, Some(By::Withdrawal));
}

/// A volume is announced again while its disk is there, so that the disk's first event happens a second time.
#[tokio::test]
async fn a_repeated_timeline_entry_is_shown_before_it_is_recorded() {
    let folder = StoreFolder::new();
    let (store, task, _) = folder.open().await;
    let volume = sample::volume();
    let tell = |news| store.write(vec![Change::Intend(intent()), Change::News(volume, news)]);
    tell(note(1)).await.unwrap();
    store.write(vec![Change::Withdraw(volume), Change::News(volume, note(2))]).await.unwrap();
    tell(note(3)).await.unwrap();
    let mut other = folder.other().await;
    run(&mut other, "BEGIN IMMEDIATE").await;
    store.post(volume, vec![note(1), note(4)]);
    let steps = |story: Story| story.entries.iter().map(|entry| entry.detail.parse().unwrap()).collect::<Vec<u32>>();
    let wanted = [1, 2, 3, 1, 4];
    // The entries are first waiting, then being written, then recorded. The timeline is the same at each moment.
    for _ in 0..100 {
        assert_eq!(steps(store.story(volume).await), wanted);
    }
    assert_eq!(stored(&store, volume).await.len(), 3, "the control: it is not on record yet");
    run(&mut other, "COMMIT").await;
    while stored(&store, volume).await.len() < wanted.len() {
        assert_eq!(steps(store.story(volume).await), wanted);
    }
    drop(store);
    task.await.unwrap();
}

/// A program that writes into the store's file beside the store goes second.
#[tokio::test]
async fn a_turn_is_given_when_nothing_waits_to_be_written_and_the_store_waits_until_it_is_given_back() {
    let folder = StoreFolder::new();
    let (store, task, _) = folder.open().await;
    let turns = store.turns.clone();
    // This write was queued before, so it goes first although the turn is asked for at the same moment.
    let first = store.begin(vec![Change::Intend(intent())]).unwrap();
    let turn = turns.take().await.unwrap();
    let mut first = first;
    assert_eq!(first.try_recv(), Ok(Ok(())), "the store went first");
    let mut second = store.begin(vec![Change::Map(sample::volume(), proven())]).unwrap();
    let mut other = folder.other().await;
    run(&mut other, "BEGIN IMMEDIATE").await;
    run(&mut other, "ROLLBACK").await;
    tokio::task::yield_now().await;
    assert!(second.try_recv().is_err(), "nothing is written during a turn");
    drop(turn);
    second.await.unwrap().unwrap();
    drop((store, turns));
    task.await.unwrap();
}

#[tokio::test]
async fn a_busy_store_gives_turns() {
    let folder = StoreFolder::new();
    let (store, task, _) = folder.open().await;
    let turns = store.turns.clone();
    store.write(vec![Change::Intend(intent())]).await.unwrap();
    // There is always one write that waits.
    let busy = store.clone();
    let busy = tokio::spawn(async move {
        let mut waiting = std::collections::VecDeque::new();
        loop {
            // This is more than one transaction takes.
            while waiting.len() < 1500 {
                waiting.push_back(busy.begin(vec![Change::News(sample::volume(), note(1))]).unwrap());
            }
            waiting.pop_front().unwrap().await.unwrap().unwrap();
        }
    });
    for _ in 0..3 {
        let begun = std::time::Instant::now();
        drop(turns.take().await.unwrap());
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
    busy.abort();
    let _ = busy.await;
    drop((store, turns));
    task.await.unwrap();
}

/// No turn is given while another program holds the store's lock, nor for a file that is not the store's any more.
#[tokio::test]
async fn a_store_that_cannot_be_written_gives_no_turn_until_it_can() {
    let folder = StoreFolder::new();
    let (store, _task, _) = folder.open().await;
    let turns = store.turns.clone();
    drop(turns.take().await.expect("the control"));
    let aside = folder.path().join("aside");
    let mut condition = store.condition();
    std::fs::rename(folder.file(), &aside).unwrap();
    condition.wait_for(Option::is_some).await.unwrap();
    let mut asked = Box::pin(turns.take());
    assert!(tokio::time::timeout(Duration::ZERO, &mut asked).await.is_err());
    // This write shows that the store had the chance to give a turn.
    store.write(vec![Change::Intend(intent())]).await.unwrap_err();
    assert!(tokio::time::timeout(Duration::ZERO, &mut asked).await.is_err());
    std::fs::rename(&aside, folder.file()).unwrap();
    drop(asked.await.unwrap());
}

/// Each volume has one row, however often it changed. What followers do not show notes nothing.
#[tokio::test]
async fn each_changed_volume_is_noted_once_with_a_growing_number() {
    let folder = StoreFolder::new();
    let (store, task, _) = folder.open().await;
    let mut other = folder.other().await;
    let noted = async |other: &mut SqliteConnection| -> Vec<(i64, String)> {
        sqlx::query_as("SELECT seq, volume_id FROM changed").fetch_all(other).await.unwrap()
    };
    let (volume, stand) = (sample::volume(), |state| News::Stand(state, None, clock::wall()));
    store.write(vec![Change::Intend(intent()), Change::News(volume, stand(State::Expired))]).await.unwrap();
    assert_eq!(noted(&mut other).await, [], "nothing of it can be shown yet");
    let mut woken = store.noted.clone();
    assert!(!woken.has_changed().unwrap(), "nobody is woken");
    let mut numbers = Vec::new();
    let changes = [
        vec![Change::Map(volume, proven())],
        vec![Change::Map(volume, proven())],
        vec![Change::News(volume, stand(State::Ready))],
        vec![Change::News(volume, stand(State::Lost)), Change::News(volume, stand(State::Ready))],
        vec![Change::Withdraw(volume)],
        vec![Change::Intend(intent()), Change::Map(volume, proven())],
    ];
    for changes in changes {
        store.write(changes).await.unwrap();
        let noted = noted(&mut other).await;
        assert_eq!(noted.len(), 1, "{noted:?}");
        assert_eq!(noted[0].1, volume.to_string());
        assert!(woken.has_changed().unwrap());
        woken.mark_unchanged();
        numbers.push(noted[0].0);
    }
    assert!(numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
    // A timeline entry and a seal are nothing that followers show.
    store.write(vec![Change::News(volume, note(1)), Change::Seal(volume, None)]).await.unwrap();
    assert_eq!(noted(&mut other).await[0].0, numbers[5]);
    assert!(!woken.has_changed().unwrap(), "nobody is woken");
    // Numbers are never used twice, even when no row is left.
    run(&mut other, "DELETE FROM changed").await;
    store.write(vec![Change::Map(volume, proven())]).await.unwrap();
    assert!(noted(&mut other).await[0].0 > numbers[5]);
    drop(store);
    task.await.unwrap();
}
