//! The table of operations.

use super::*;
use crate::clock::Steady;
use crate::operation::{Attach, Fault, Operation, OperationState, Place, Progress, Request, Response};
use crate::projection::operations::SqliteOperations;
use crate::reason::Code;

const REFUSE_THE_SECOND: &str = "CREATE TRIGGER theirs BEFORE INSERT ON volume_operations WHEN NEW.id LIKE '00000002%' \
    BEGIN SELECT RAISE(ABORT, 'not this one'); END";

/// A trigger that takes longer than a write may.
const SLOW_FOR_THE_SECOND: &str = "CREATE TRIGGER theirs BEFORE INSERT ON volume_operations WHEN NEW.id LIKE '00000002%' \
    BEGIN SELECT count(*) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000000) \
    SELECT i FROM n); END";

const ROWS: &str = "SELECT type || ' ' || status || ' ' || ifnull(error, '') FROM volume_operations ORDER BY id";

fn id(n: u64) -> String {
    format!("{n:08x}-0000-4000-8000-000000000000")
}

fn operation(number: u64, root: bool) -> Operation {
    let attach = Attach { volume: id(7).parse().unwrap(), to: Place::Vm(id(8).parse().unwrap()) };
    Operation {
        id: id(number).parse().unwrap(),
        number,
        request: if root { Request::AttachRoot(attach) } else { Request::Attach(attach) },
        written: None,
        key: None,
        uid: Some(7),
        volume: Some(id(7).parse().unwrap()),
        vm: Some(id(8).parse().unwrap()),
        state: OperationState::Pending,
        progress: Progress::begin(),
        fault: None,
        response: None,
        limit_seconds: 60,
        deadline: Steady::now(),
        created_at: jiff::Timestamp::UNIX_EPOCH,
        updated_at: jiff::Timestamp::UNIX_EPOCH,
        completed_at: None,
    }
}

impl StoreFolder {
    /// Starts to show operations.
    async fn start_operations(&self, pace: Pace) -> Running {
        let (store, closing, records) = self.open().await;
        let source = source::Operations(store.follow(SQLITE_OPERATIONS, Follows::Operations));
        let following = tokio::spawn(task::run(source, SqliteOperations, pace));
        Running { store, closing, following, records }
    }
}

async fn put(running: &Running, operation: Operation) {
    running.store.write(vec![Change::Operation(Box::new(operation))]).await.unwrap();
}

#[tokio::test]
async fn each_operation_has_a_row_in_the_predecessors_words() {
    let folder = StoreFolder::new();
    let running = folder.start_operations(QUICK).await;
    let failed = Operation {
        state: OperationState::Failed,
        fault: Some(Fault::new(Code::VolumeBusy, "it is Migrating")),
        ..operation(1, false)
    };
    let done = Operation {
        state: OperationState::Completed,
        response: Some(Response { message: "done".to_owned(), ..Response::default() }),
        ..operation(2, true)
    };
    for one in [operation(1, false), operation(2, true), failed, done] {
        put(&running, one).await;
    }
    running.until_shown().await;
    let mut other = folder.other().await;
    assert_eq!(text(&mut other, ROWS).await, ["attach failed it is Migrating", "attach completed "]);
    let requests = text(&mut other, "SELECT request FROM volume_operations ORDER BY id").await;
    assert!(requests[1].contains("\"attach_as\":\"root\"") && requests[1].contains("\"device_id\":0"), "{requests:?}");
    assert!(!requests[0].contains("root"), "the control");
    running.stop().await;
}

#[tokio::test]
async fn a_row_that_the_table_refuses_is_named_with_the_databases_words_blocks_no_other_and_heals_by_itself() {
    for (trigger, words) in [(REFUSE_THE_SECOND, "not this one"), (SLOW_FOR_THE_SECOND, "longer than 200 ms")] {
        let folder = StoreFolder::new();
        let mut other = folder.open_once_and_connect().await;
        run(&mut other, trigger).await;
        let running = folder.start_operations(QUICK).await;
        for number in 1..=3 {
            put(&running, operation(number, false)).await;
        }
        let following = running.until_set_aside(1).await;
        assert_eq!(following.owed, Some(crate::store::Owed { records: 0, set_aside: 1 }));
        assert_eq!(following.follows, Follows::Operations);
        let (named, why) = following.progress.example.unwrap();
        assert!(named == id(2) && why.contains(words), "{named}: {why}");
        assert_eq!(following.progress.failure, None, "the table works");
        assert_eq!(text(&mut other, ROWS).await.len(), 2, "the others are shown");

        run(&mut other, "DROP TRIGGER theirs").await;
        let healed = |following: &Following| following.progress.example.is_none();
        running.until("it is shown", healed).await;
        assert_eq!(text(&mut other, ROWS).await.len(), 3);
        running.stop().await;
    }
}

#[tokio::test]
async fn a_start_and_a_change_of_the_operation_ask_the_table_once_more() {
    let folder = StoreFolder::new();
    let mut other = folder.open_once_and_connect().await;
    run(&mut other, REFUSE_THE_SECOND).await;
    let running = folder.start_operations(PACE).await;
    put(&running, operation(2, false)).await;
    running.until_set_aside(1).await;
    running.kill().await;
    let running = folder.start_operations(PACE).await;
    running.until_set_aside(1).await;
    run(&mut other, "DROP TRIGGER theirs").await;
    assert_eq!(text(&mut other, ROWS).await.len(), 0, "the control: it is not tried again for a minute");
    let changed = Operation { state: OperationState::Executing, ..operation(2, false) };
    put(&running, changed).await;
    running.until("it is shown", |following| following.progress.example.is_none()).await;
    assert_eq!(text(&mut other, ROWS).await, ["attach executing "]);
    running.stop().await;

    run(&mut other, "DELETE FROM volume_operations").await;
    run(&mut other, REFUSE_THE_SECOND).await;
    let running = folder.start_operations(PACE).await;
    put(&running, operation(2, false)).await;
    running.until_set_aside(1).await;
    running.kill().await;
    run(&mut other, "DROP TRIGGER theirs").await;
    let running = folder.start_operations(PACE).await;
    let shown = |following: &Following| following.owed.is_some_and(|owed| owed.records + owed.set_aside == 0);
    running.until("it is shown", shown).await;
    assert_eq!(text(&mut other, ROWS).await.len(), 1, "by the start");
    running.stop().await;
}
