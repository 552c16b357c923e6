//! The predecessor's table `volume_operations`: the present row of each operation, in the store's own file.
//!
//! The truth's own transactions note which operations have changed (`migrations/0006_shown.sql`). This task shows them at its own
//! pace. A row that the table refuses is set aside, so that no other one waits for it.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use sqlx::sqlite::SqliteConnection;
use tokio::time::sleep;

use crate::effect;
use crate::operation::{Operation, predecessor};
use crate::store::batch::Batch;
use crate::store::{Follower, Progress, begin, changed_operations, end};

/// Operations shown in one transaction: the truth's own writer waits meanwhile.
const AT_ONCE: i64 = 24;

/// First and longest wait before a table that takes nothing is tried again.
const AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// How long nothing has to be owed before the connection goes.
const QUIET: Duration = Duration::from_secs(1);

/// How long others' triggers on the table may take.
const LIMIT: Duration = Duration::from_millis(200);

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    kind: &'static str,
    status: &'static str,
    volume_id: String,
    vm_id: Option<String>,
    request: Value,
    response: Option<Value>,
    error: Option<String>,
    created_at: Timestamp,
    updated_at: Timestamp,
    completed_at: Option<Timestamp>,
}

/// What is shown of an operation, in the predecessor's words.
pub(super) fn row(operation: &Operation) -> Row {
    Row {
        kind: predecessor::kind(&operation.request).as_str(),
        status: operation.state.as_str(),
        volume_id: operation.volume.map(|volume| volume.to_string()).unwrap_or_default(),
        vm_id: operation.vm.map(|vm| vm.to_string()),
        request: Value::Object(predecessor::request(operation)),
        response: predecessor::response(operation),
        error: predecessor::error(operation),
        created_at: operation.created_at,
        updated_at: operation.updated_at,
        completed_at: operation.completed_at,
    }
}

/// Shows what has changed, until the store closes.
pub(super) async fn run(mut follower: Follower) {
    let (mut failures, mut first) = (0, true);
    loop {
        // Asked before the look, so that nothing that is noted meanwhile is missed.
        let last = follower.is_last();
        match show_some(&mut follower, first).await {
            Ok(true) => first = false,
            Ok(false) | Err(_) if last => break,
            Ok(false) => {
                (failures, first) = (0, false);
                follower.stands(Progress::default());
                if tokio::time::timeout(QUIET, follower.noted()).await.is_err() {
                    follower.rest().await;
                    follower.noted().await;
                }
            }
            Err(why) => {
                if failures == 1 {
                    tracing::error!("the table volume_operations cannot be written: {why}");
                }
                follower.stands(Progress { failure: Some(why), ..Progress::default() });
                sleep((AGAIN.0 * (1 << u32::min(failures, 10))).min(AGAIN.1)).await;
                failures += 1;
            }
        }
    }
    follower.close().await;
}

/// Returns false when nothing is owed. At the first time after a start, what was set aside is owed again: the table may
/// take it now.
async fn show_some(follower: &mut Follower, first: bool) -> Result<bool, String> {
    let (_turn, connection) = follower.at_the_file(Some(LIMIT)).await.map_err(|error| error.to_string())?;
    let shown = async {
        if first {
            sqlx::query("UPDATE changed_operations SET refused = 0 WHERE refused = 1")
                .execute(&mut *connection)
                .await?;
        }
        shown(connection).await
    };
    let shown = shown.await;
    shown.map_err(|error| {
        follower.failed(&error);
        error.to_string()
    })
}

async fn shown(connection: &mut SqliteConnection) -> sqlx::Result<bool> {
    let changed = changed_operations(connection, AT_ONCE).await?;
    if changed.is_empty() {
        return Ok(false);
    }
    let rows: Vec<(i64, String, Option<Row>)> = changed
        .into_iter()
        .map(|(seq, id, operation)| (seq, id, operation.ok().flatten().map(|operation| row(&operation))))
        .collect();
    if written(connection, &rows).await.is_ok() {
        return Ok(true);
    }
    // One for each, so that none fails for another's sake.
    for row in rows {
        let Err(error) = written(connection, std::slice::from_ref(&row)).await else { continue };
        if !is_refusal(&error) {
            return Err(error);
        }
        tracing::error!(OPERATION_ID = %row.1, "the table volume_operations does not take the operation: {error}");
        sqlx::query("UPDATE changed_operations SET refused = 1 WHERE seq = ?")
            .bind(row.0)
            .execute(&mut *connection)
            .await?;
    }
    Ok(true)
}

/// The row's fault, not the table's: a constraint, a mismatch of types, a trigger that raises.
fn is_refusal(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(database) = error else { return false };
    let code = database.code().and_then(|code| code.parse::<u32>().ok()).map(|code| code & 0xff);
    matches!(code, Some(19 | 20))
}

async fn written(connection: &mut SqliteConnection, rows: &[(i64, String, Option<Row>)]) -> sqlx::Result<()> {
    let mut batch = Batch::default();
    for (seq, id, row) in rows {
        match row {
            Some(row) => show(&mut batch, id, row),
            None => drop(batch.add("DELETE FROM volume_operations WHERE id = ?").bind(id.clone())),
        }
        batch.add("DELETE FROM changed_operations WHERE seq = ?").bind(*seq);
    }
    effect::at_all(&["commit.shown-operations"], async {
        begin(connection).await?;
        let applied = batch.run(connection).await;
        end(connection, applied).await
    })
    .await
}

fn show(batch: &mut Batch, id: &str, row: &Row) {
    let time = |at: Timestamp| at.strftime("%Y-%m-%d %H:%M:%S%.3f").to_string();
    batch
        .add(
            "INSERT INTO volume_operations (id, type, status, volume_id, vm_id, request, response, error, created_at, \
             updated_at, completed_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
             ON CONFLICT (id) DO UPDATE SET status = excluded.status, volume_id = excluded.volume_id, \
             vm_id = excluded.vm_id, request = excluded.request, response = excluded.response, error = excluded.error, \
             updated_at = excluded.updated_at, completed_at = excluded.completed_at",
        )
        .bind(id.to_owned())
        .bind(row.kind)
        .bind(row.status)
        .bind(row.volume_id.clone())
        .bind(row.vm_id.clone())
        .bind(row.request.to_string())
        .bind(row.response.as_ref().map(ToString::to_string))
        .bind(row.error.clone())
        .bind(time(row.created_at))
        .bind(time(row.updated_at))
        .bind(row.completed_at.map(time));
}

#[cfg(test)]
mod tests {
    use sqlx::Row as _;
    use sqlx::{Connection, SqliteConnection};

    use super::*;
    use crate::clock::Steady;
    use crate::operation::{Attach, OperationState, Place, Progress as Step, Request, Response};
    use crate::reason::Code;
    use crate::store::{Change, Options, Store};

    fn operation(number: u64, root: bool) -> Operation {
        let id = |n: u64| format!("{n:08x}-0000-4000-8000-000000000000");
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
            progress: Step::begin(),
            fault: None,
            response: None,
            limit_seconds: 60,
            deadline: Steady::now(),
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
            completed_at: None,
        }
    }

    async fn rows_of(path: &std::path::Path) -> Vec<(String, String, String, Option<String>)> {
        let mut connection = SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap();
        let rows = sqlx::query("SELECT type, status, request, error FROM volume_operations ORDER BY id")
            .fetch_all(&mut connection)
            .await
            .unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect()
    }

    #[tokio::test]
    async fn each_operation_has_a_row_in_the_predecessors_words_and_one_that_is_refused_keeps_no_other_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("attachd.db");
        let options = Options { path: &path, history_days: 90, boot_id: "boot", spare: dir.path() };
        let (store, task, _) = Store::open(options).await.unwrap();
        let mut stranger = SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap();
        let trigger = "CREATE TRIGGER theirs BEFORE INSERT ON volume_operations WHEN NEW.id LIKE '00000002%' \
            BEGIN SELECT RAISE(ABORT, 'not this one'); END";
        sqlx::query(trigger).execute(&mut stranger).await.unwrap();
        stranger.close().await.unwrap();
        for (number, root) in [(1, false), (2, false), (3, true)] {
            store.write(vec![Change::Operation(Box::new(operation(number, root)))]).await.unwrap();
        }
        let failed = Operation {
            state: OperationState::Failed,
            fault: Some(crate::operation::Fault::new(Code::VolumeBusy, "it is Migrating")),
            ..operation(1, false)
        };
        let done = Operation {
            state: OperationState::Completed,
            response: Some(Response { message: "done".to_owned(), ..Response::default() }),
            ..operation(3, true)
        };
        let showing = tokio::spawn(run(store.follow("sqlite-operations")));
        for ended in [failed, done] {
            store.write(vec![Change::Operation(Box::new(ended))]).await.unwrap();
        }
        drop(store);
        showing.await.unwrap();
        task.await.unwrap();
        let rows = rows_of(&path).await;
        let brief: Vec<_> =
            rows.iter().map(|(kind, status, _, error)| (&**kind, &**status, error.as_deref())).collect();
        assert_eq!(brief, [("attach", "failed", Some("it is Migrating")), ("attach", "completed", None)]);
        assert!(rows[1].2.contains("\"attach_as\":\"root\"") && rows[1].2.contains("\"device_id\":0"), "{}", rows[1].2);
        assert!(!rows[0].2.contains("root"), "the control");

        // After a start the table is asked once more about the one that it refused.
        let mut stranger = SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap();
        sqlx::query("DROP TRIGGER theirs").execute(&mut stranger).await.unwrap();
        stranger.close().await.unwrap();
        let options = Options { path: &path, history_days: 90, boot_id: "boot", spare: dir.path() };
        let (store, task, _) = Store::open(options).await.unwrap();
        let showing = tokio::spawn(run(store.follow("sqlite-operations")));
        drop(store);
        showing.await.unwrap();
        task.await.unwrap();
        assert_eq!(rows_of(&path).await.len(), 3);
    }
}
