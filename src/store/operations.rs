//! Writes and reads operations and placeholders.

use jiff::Timestamp;
use sqlx::Row;
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{Arguments, AssertSqlSafe, Encode, Sqlite, Type};

use super::Owed;
use super::batch::{Batch, Values};
use super::read::{moment, not_ours, text, time};
use crate::clock::Steady;
use crate::identity::{OperationId, VmId, VolumeId};
use crate::operation::{IdempotencyKey, Kind, Operation, OperationState, Placeholder, Step};

/// The filter for a list of operations. For the next page `before` is the last number of this one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OperationFilter {
    /// Only this kind.
    pub kind: Option<Kind>,
    /// Only this state.
    pub state: Option<OperationState>,
    /// Only this volume.
    pub volume: Option<VolumeId>,
    /// Only this VM.
    pub vm: Option<VmId>,
    /// Only operations with a number lower than this one.
    pub before: Option<u64>,
    /// The highest count of operations, the newest first.
    pub limit: Option<u32>,
}

const COLUMNS: &str = "number, id, state, volume_id, vm_id, request, progress, response, fault, idempotency_key, uid, \
    limit_seconds, waits_until, created_at, updated_at, completed_at, written";

/// Returns the name of the kill point at which an operation is recorded.
pub(super) fn effect(operation: &Operation) -> &'static str {
    match (&operation.progress.step, operation.state) {
        (_, OperationState::Completed) => "record.completed",
        (_, OperationState::Failed) => "record.failed",
        (_, OperationState::Cancelled) => "record.cancelled",
        _ if operation.progress.given_up.is_some() => "record.given-up",
        (Step::Accepted, _) => "record.accepted",
        (Step::Create { .. }, _) => "record.create",
        (Step::DeleteOrphan, _) => "record.delete-orphan",
        (Step::StopVm { .. }, _) => "record.stop-vm",
        (Step::Seal, _) => "record.seal",
        (Step::Detach { .. }, _) => "record.detach",
        (Step::Release, _) => "record.release",
        (Step::Intend, _) => "record.intend",
        (Step::Attach { .. }, _) => "record.attach",
        (Step::Delete, _) => "record.delete",
        (Step::DestroyVm { .. }, _) => "record.destroy-vm",
        (Step::Unseal, _) => "record.unseal",
        (Step::Withdraw, _) => "record.withdraw",
    }
}

/// Writes the present state of an operation.
pub(super) fn put<'b>(batch: &'b mut Batch, operation: &Operation, boot_id: &str) -> Values<'b> {
    let left = i64::from(operation.limit_seconds) * 1_000_000;
    batch
        .add(
            "INSERT INTO operations (number, id, type, state, settled, volume_id, vm_id, request, progress, response, \
             fault, idempotency_key, uid, limit_seconds, waits_boot, waits_until, waits_left, created_at, updated_at, \
             completed_at, written) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
             ON CONFLICT (number) DO UPDATE SET state = excluded.state, settled = excluded.settled, \
             volume_id = excluded.volume_id, vm_id = excluded.vm_id, progress = excluded.progress, \
             response = excluded.response, fault = excluded.fault, updated_at = excluded.updated_at, \
             completed_at = excluded.completed_at",
        )
        .bind(operation.number.cast_signed())
        .bind(operation.id.to_string())
        .bind(operation.request.kind().as_str())
        .bind(operation.state.as_str())
        .bind(operation.is_settled())
        .bind(operation.volume.map(|volume| volume.to_string()))
        .bind(operation.vm.map(|vm| vm.to_string()))
        .bind(json(&operation.request))
        .bind(json(&operation.progress))
        .bind(operation.response.as_ref().map(json))
        .bind(operation.fault.as_ref().map(json))
        .bind(operation.key.as_ref().map(|key| key.as_str().to_owned()))
        .bind(operation.uid)
        .bind(operation.limit_seconds)
        .bind(boot_id.to_owned())
        .bind(operation.deadline.as_micros())
        .bind(left)
        .bind(operation.created_at.as_microsecond())
        .bind(operation.updated_at.as_microsecond())
        .bind(operation.completed_at.map(Timestamp::as_microsecond))
        .bind(operation.written.as_ref().map(json))
}

/// Writes which VM has a volume.
pub(super) fn place<'b>(batch: &'b mut Batch, placeholder: &Placeholder) -> Values<'b> {
    batch
        .add(
            "INSERT INTO placeholders (volume_id, vm_id, root, operation_id, since) VALUES (?, ?, ?, ?, ?) \
             ON CONFLICT (volume_id) DO UPDATE SET vm_id = excluded.vm_id, root = excluded.root, \
             operation_id = excluded.operation_id, since = excluded.since",
        )
        .bind(placeholder.volume.to_string())
        .bind(placeholder.vm.to_string())
        .bind(placeholder.root)
        .bind(placeholder.operation.to_string())
        .bind(placeholder.since.as_microsecond())
}

/// Deletes the placeholder of a volume.
pub(super) fn displace(batch: &mut Batch, volume: VolumeId) -> Values<'_> {
    batch.add("DELETE FROM placeholders WHERE volume_id = ?").bind(volume.to_string())
}

/// Returns the operations that have not ended, in the order in which they came.
pub(super) async fn open(connection: &mut SqliteConnection) -> sqlx::Result<Vec<Operation>> {
    let query = format!("SELECT {COLUMNS} FROM operations WHERE NOT settled ORDER BY number");
    all(&sqlx::query(AssertSqlSafe(query)).fetch_all(connection).await?)
}

/// Returns the highest number given so far.
pub(super) async fn last_number(connection: &mut SqliteConnection) -> sqlx::Result<u64> {
    let last: Option<i64> = sqlx::query_scalar("SELECT seq FROM sqlite_sequence WHERE name = 'operations'")
        .fetch_optional(connection)
        .await?;
    Ok(last.unwrap_or_default().cast_unsigned())
}

/// Returns how many operations have failed since then, of the last 1000. This takes the same time however many there are.
pub(super) async fn failed_since(connection: &mut SqliteConnection, since: Timestamp) -> sqlx::Result<u64> {
    let query = "SELECT count(*) FROM (SELECT state, completed_at FROM operations ORDER BY number DESC LIMIT 1000) \
         WHERE state = 'failed' AND completed_at >= ?";
    let count: i64 = sqlx::query_scalar(query).bind(since.as_microsecond()).fetch_one(connection).await?;
    Ok(count.unsigned_abs())
}

/// Returns the operation with this id.
pub(super) async fn one(connection: &mut SqliteConnection, id: OperationId) -> sqlx::Result<Option<Operation>> {
    let query = format!("SELECT {COLUMNS} FROM operations WHERE id = ?");
    let row = sqlx::query(AssertSqlSafe(query)).bind(id.to_string()).fetch_optional(connection).await?;
    row.map(|row| operation(&row)).transpose()
}

/// Returns the operation to which this user gave this idempotency key.
pub(super) async fn keyed(
    connection: &mut SqliteConnection,
    uid: Option<u32>,
    key: &IdempotencyKey,
) -> sqlx::Result<Option<Operation>> {
    let query =
        format!("SELECT {COLUMNS} FROM operations WHERE ifnull(uid, -1) = ifnull(?, -1) AND idempotency_key = ?");
    let query = sqlx::query(AssertSqlSafe(query)).bind(uid).bind(key.as_str().to_owned());
    query.fetch_optional(connection).await?.map(|row| operation(&row)).transpose()
}

/// Returns the operations that match the filter, the newest first.
pub(super) async fn list(connection: &mut SqliteConnection, filter: &OperationFilter) -> sqlx::Result<Vec<Operation>> {
    let mut wanted = Wanted::default();
    wanted.add("type = ?", filter.kind.map(|kind| kind.as_str().to_owned()));
    wanted.add("state = ?", filter.state.map(|state| state.as_str().to_owned()));
    wanted.add("volume_id = ?", filter.volume.map(|volume| volume.to_string()));
    wanted.add("vm_id = ?", filter.vm.map(|vm| vm.to_string()));
    wanted.add("number < ?", filter.before.map(|number| i64::try_from(number).unwrap_or(i64::MAX)));
    let Wanted { conditions, mut values } = wanted;
    let limit = filter.limit.map_or(-1, i64::from);
    values.add(limit).map_err(sqlx::Error::Encode)?;
    let conditions = if conditions.is_empty() { "TRUE".to_owned() } else { conditions.join(" AND ") };
    let query = format!("SELECT {COLUMNS} FROM operations WHERE {conditions} ORDER BY number DESC LIMIT ?");
    all(&sqlx::query_with(AssertSqlSafe(query), values).fetch_all(connection).await?)
}

#[derive(Default)]
struct Wanted {
    conditions: Vec<&'static str>,
    values: SqliteArguments,
}

impl Wanted {
    fn add<'v>(&mut self, condition: &'static str, value: Option<impl Encode<'v, Sqlite> + Type<Sqlite>>) {
        if let Some(value) = value
            // Texts and numbers can always be encoded.
            && self.values.add(value).is_ok()
        {
            self.conditions.push(condition);
        }
    }
}

/// A change's number, the operation's id as it is noted, and what is on record of it.
type ChangedRow = (i64, String, sqlx::Result<Option<Operation>>);

/// Returns some of the operations whose row in the predecessor's table is out of date, in order: the number of the change,
/// the id, and what is on record. `None`: it was deleted. An error: the row holds a value that attachd did not write.
pub(super) async fn changed(connection: &mut SqliteConnection, limit: i64) -> sqlx::Result<Vec<ChangedRow>> {
    let query = format!(
        "SELECT c.seq, c.operation_id AS changed_id, o.* FROM changed_operations c \
         LEFT JOIN (SELECT {COLUMNS} FROM operations) o ON o.id = c.operation_id WHERE NOT c.refused ORDER BY c.seq LIMIT ?"
    );
    let rows = sqlx::query(AssertSqlSafe(query)).bind(limit).fetch_all(connection).await?;
    let read = rows.iter().map(|row| {
        let kept = row.try_get::<Option<String>, _>("id")?.is_some();
        Ok((row.try_get("seq")?, row.try_get("changed_id")?, kept.then(|| operation(row)).transpose()))
    });
    read.collect()
}

/// Returns whether the predecessor's table has refused an operation that has not changed since.
pub(super) async fn any_set_aside(connection: &mut SqliteConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM changed_operations WHERE refused)").fetch_one(connection).await
}

/// Returns how many operations the predecessor's table does not show yet, and how many it has refused.
pub(super) async fn owed(connection: &mut SqliteConnection) -> sqlx::Result<Owed> {
    let query = "SELECT count(*) FILTER (WHERE NOT refused), count(*) FILTER (WHERE refused) FROM changed_operations";
    let (records, set_aside): (i64, i64) = sqlx::query_as(query).fetch_one(connection).await?;
    Ok(Owed { records: records.unsigned_abs(), set_aside: set_aside.unsigned_abs() })
}

/// Returns every placeholder.
pub(super) async fn placeholders(connection: &mut SqliteConnection) -> sqlx::Result<Vec<Placeholder>> {
    let rows = sqlx::query("SELECT volume_id, vm_id, root, operation_id, since FROM placeholders")
        .fetch_all(connection)
        .await?;
    rows.iter().map(placeholder).collect()
}

fn placeholder(row: &SqliteRow) -> sqlx::Result<Placeholder> {
    Ok(Placeholder {
        volume: text(row, "volume_id")?,
        vm: text(row, "vm_id")?,
        root: row.try_get("root")?,
        operation: text(row, "operation_id")?,
        since: time(row, "since")?,
    })
}

fn all(rows: &[SqliteRow]) -> sqlx::Result<Vec<Operation>> {
    rows.iter().map(operation).collect()
}

fn operation(row: &SqliteRow) -> sqlx::Result<Operation> {
    let state: String = row.try_get("state")?;
    Ok(Operation {
        id: text(row, "id")?,
        number: row.try_get::<i64, _>("number")?.cast_unsigned(),
        request: read(row, "request")?.ok_or_else(|| not_ours("request", "it is missing"))?,
        written: read(row, "written")?,
        key: texts(row, "idempotency_key")?,
        uid: row.try_get("uid")?,
        volume: texts(row, "volume_id")?,
        vm: texts(row, "vm_id")?,
        state: OperationState::from_name(&state).ok_or_else(|| not_ours("state", &state))?,
        progress: read(row, "progress")?.ok_or_else(|| not_ours("progress", "it is missing"))?,
        fault: read(row, "fault")?,
        response: read(row, "response")?,
        limit_seconds: row.try_get("limit_seconds")?,
        deadline: Steady::from_micros(row.try_get("waits_until")?),
        created_at: time(row, "created_at")?,
        updated_at: time(row, "updated_at")?,
        completed_at: row
            .try_get::<Option<i64>, _>("completed_at")?
            .map(|at| moment("completed_at", at))
            .transpose()?,
    })
}

fn json(value: &impl serde::Serialize) -> String {
    // Maps with text keys, texts and numbers can always be serialized.
    serde_json::to_string(value).unwrap_or_default()
}

fn read<T: serde::de::DeserializeOwned>(row: &SqliteRow, column: &str) -> sqlx::Result<Option<T>> {
    let kept: Option<String> = row.try_get(column)?;
    kept.map(|kept| serde_json::from_str(&kept)).transpose().map_err(|error| not_ours(column, error))
}

fn texts<T: std::str::FromStr<Err: std::fmt::Display>>(row: &SqliteRow, column: &str) -> sqlx::Result<Option<T>> {
    let kept: Option<String> = row.try_get(column)?;
    kept.map(|kept| kept.parse()).transpose().map_err(|error: T::Err| not_ours(column, error))
}
