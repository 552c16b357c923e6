//! The predecessor's table `volume_operations`: the present row of each operation, in the store's own file.
//!
//! The truth's own transactions note which operations have changed (`migrations/0006_shown.sql`).

use jiff::Timestamp;
use serde_json::Value;

use super::judge::{LIMIT, judged};
use super::{Target, TargetError};
use crate::effect;
use crate::identity::OperationId;
use crate::operation::{Operation, predecessor};
use crate::store::batch::Batch;
use crate::store::{Follower, WriteConnection};

/// What is shown of an operation; `row` is `None` if it was deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OperationRow {
    /// The operation.
    pub(super) operation: OperationId,
    /// Its row.
    pub(super) row: Option<Row>,
}

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

/// The table in the store's own file.
pub(super) struct SqliteOperations;

const DELETE: &str = "DELETE FROM volume_operations WHERE id = ?";

const PUT: &str = "INSERT INTO volume_operations (id, type, status, volume_id, vm_id, request, response, error, \
    created_at, updated_at, completed_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
    ON CONFLICT (id) DO UPDATE SET status = excluded.status, volume_id = excluded.volume_id, \
    vm_id = excluded.vm_id, request = excluded.request, response = excluded.response, error = excluded.error, \
    updated_at = excluded.updated_at, completed_at = excluded.completed_at";

impl Target<OperationRow> for SqliteOperations {
    async fn write(&mut self, rows: &[OperationRow], follower: &mut Follower) -> Result<(), TargetError> {
        let (_turn, connection) =
            follower.at_the_file(Some(LIMIT)).await.map_err(|error| TargetError::Away(error.to_string()))?;
        let Err(error) = written(connection, rows).await else { return Ok(()) };
        let failure = judged(connection, &error, &[DELETE, PUT]).await;
        follower.failed(&error);
        Err(failure)
    }
}

async fn written(connection: &mut WriteConnection, rows: &[OperationRow]) -> sqlx::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::default();
    for OperationRow { operation, row } in rows {
        let id = operation.to_string();
        match row {
            Some(row) => show(&mut batch, &id, row),
            None => drop(batch.add(DELETE).bind(id)),
        }
    }
    effect::at_all(&["commit.shown-operations"], async {
        connection.begin().await?;
        let applied = batch.run(connection).await;
        connection.end(applied).await
    })
    .await
}

fn show(batch: &mut Batch, id: &str, row: &Row) {
    let time = |at: Timestamp| at.strftime("%Y-%m-%d %H:%M:%S%.3f").to_string();
    batch
        .add(PUT)
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
