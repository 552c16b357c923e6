//! Reads the records.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::Owed;
use crate::clock::Steady;
use crate::device::evidence::Evidence;
use crate::device::scheme;
use crate::identity::{OperationId, VolumeId};
use crate::operation::Placeholder;
use crate::reason::Code;
use crate::volume::{By, Entry, Intent, IntentOrigin, Reason, Record, State};

/// The text for [`By::Withdrawal`].
pub(super) const BY_WITHDRAWAL: &str = "withdrawal";

/// The columns of a volume's record: of its intent `i` and its mapping `m`.
const RECORD: &str = "i.volume_id, i.vm_id, i.size_bytes, i.deadline_seconds, i.waits_until, i.created_at, i.uid, i.state, \
    i.since, i.sealed_by, i.operation_id, i.reason_code, i.reason_message, i.reason_hint, m.serial AS mapped_serial, \
    m.scheme, m.device_path, m.devnum, m.diskseq, m.size_bytes AS mapped_bytes, m.read_only, m.boot_id, m.proven_at";

/// Returns the records of every volume.
pub(super) async fn records(connection: &mut SqliteConnection) -> sqlx::Result<Vec<Record>> {
    let query = sqlx::query(sqlx::AssertSqlSafe(format!(
        "SELECT {RECORD} FROM intents i LEFT JOIN mappings m USING (volume_id)"
    )));
    // Row by row, because ten thousand rows at once would need more memory than all their records.
    let mut boots = Boots::default();
    query.fetch(connection).map(|row| record(&row?, &mut boots)).try_collect().await
}

/// The boot ids of mappings, each kept once. Most mappings have the same.
#[derive(Default)]
struct Boots(BTreeSet<Arc<str>>);

impl Boots {
    fn kept(&mut self, id: &str) -> Arc<str> {
        if let Some(kept) = self.0.get(id) {
            return Arc::clone(kept);
        }
        let id = Arc::<str>::from(id);
        self.0.insert(Arc::clone(&id));
        id
    }
}

/// Returns one volume's timeline in the order of events. A clock that was set does not change the order.
pub(super) async fn timeline(connection: &mut SqliteConnection, volume: VolumeId) -> sqlx::Result<Vec<Entry>> {
    let rows = sqlx::query("SELECT at, event, detail FROM timeline WHERE volume_id = ? ORDER BY id")
        .bind(volume.to_string())
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|row| {
            let event: String = row.try_get("event")?;
            Ok(Entry { at: time(row, "at")?, event: event.as_str().into(), detail: row.try_get("detail")? })
        })
        .collect()
}

/// What is on record of a volume.
#[derive(Debug)]
pub enum Present {
    /// The volume is wanted on this host.
    Wanted(Box<Record>),
    /// An operation had the volume attached to another VM.
    Elsewhere(Placeholder),
    /// Neither: the volume was withdrawn here, or detached there.
    Absent,
}

/// Returns how many changed volumes each follower has yet to show, and how many it has set aside.
pub(super) async fn owed(connection: &mut SqliteConnection) -> sqlx::Result<HashMap<String, Owed>> {
    let query = sqlx::query(
        "SELECT name, (SELECT count(*) FROM changed WHERE seq > followers.done) AS owed, \
         (SELECT count(*) FROM set_aside WHERE follower = name) AS set_aside FROM followers",
    );
    let rows = query.fetch_all(connection).await?;
    let number = |row: &SqliteRow, column| row.try_get::<i64, _>(column).map(i64::unsigned_abs);
    let read = rows.iter().map(|row| {
        let owed = Owed { records: number(row, "owed")?, set_aside: number(row, "set_aside")? };
        Ok((row.try_get("name")?, owed))
    });
    read.collect()
}

/// Returns some of the volumes that changed after `done`, in order: the number, the volume, and what is on record of it.
pub(super) async fn changed(
    connection: &mut SqliteConnection,
    done: i64,
    limit: i64,
) -> sqlx::Result<Vec<(i64, String, sqlx::Result<Present>)>> {
    let query = sqlx::query(sqlx::AssertSqlSafe(format!(
        "SELECT c.seq, c.volume_id AS changed_id, {RECORD}, p.vm_id AS place_vm, p.root AS place_root, \
         p.operation_id AS place_operation, p.since AS place_since FROM changed c LEFT JOIN intents i USING (volume_id) \
         LEFT JOIN mappings m USING (volume_id) LEFT JOIN placeholders p USING (volume_id) \
         WHERE c.seq > ? ORDER BY c.seq LIMIT ?"
    )));
    let rows = query.bind(done).bind(limit).fetch_all(connection).await?;
    let mut boots = Boots::default();
    let read = rows.iter().map(|row| Ok((row.try_get("seq")?, row.try_get("changed_id")?, present(row, &mut boots))));
    read.collect()
}

/// Returns what is on record of a volume. A wanted volume that never had a disk here has nothing to show, so its
/// placeholder goes first.
fn present(row: &SqliteRow, boots: &mut Boots) -> sqlx::Result<Present> {
    let is_some = |column| Ok::<_, sqlx::Error>(row.try_get::<Option<String>, _>(column)?.is_some());
    if is_some("place_vm")? && !is_some("mapped_serial")? {
        return Ok(Present::Elsewhere(Placeholder {
            volume: text(row, "changed_id")?,
            vm: text(row, "place_vm")?,
            root: row.try_get("place_root")?,
            operation: text(row, "place_operation")?,
            since: time(row, "place_since")?,
        }));
    }
    if is_some("volume_id")? {
        return Ok(Present::Wanted(Box::new(record(row, boots)?)));
    }
    Ok(Present::Absent)
}

/// A hint that is the code's own is kept once for all volumes.
fn hint(code: Code, kept: String) -> Cow<'static, str> {
    if kept == code.hint() { Cow::Borrowed(code.hint()) } else { Cow::Owned(kept) }
}

fn record(row: &SqliteRow, boots: &mut Boots) -> sqlx::Result<Record> {
    let reason_code: Option<String> = row.try_get("reason_code")?;
    // A code of another version is dropped: the volume's state is decided at once.
    let reason = match reason_code.as_deref().and_then(Code::from_name) {
        None => None,
        Some(code) => Some(Reason {
            code,
            message: row.try_get::<Option<String>, _>("reason_message")?.unwrap_or_default(),
            hint: hint(code, row.try_get::<Option<String>, _>("reason_hint")?.unwrap_or_default()),
        }),
    };
    let state: String = row.try_get("state")?;
    Ok(Record {
        intent: Intent {
            volume: text::<VolumeId>(row, "volume_id")?,
            vm_id: row.try_get("vm_id")?,
            size_bytes: row.try_get::<Option<i64>, _>("size_bytes")?.map(i64::cast_unsigned),
            deadline_seconds: row.try_get("deadline_seconds")?,
            deadline: row.try_get::<Option<i64>, _>("waits_until")?.map(Steady::from_micros),
            created_at: time(row, "created_at")?,
            uid: row.try_get("uid")?,
            origin: operation(row, "operation_id")?.map_or(IntentOrigin::Announced, IntentOrigin::Operation),
        },
        mapping: mapping(row, boots)?,
        state: State::from_name(&state).unwrap_or(State::Waiting),
        since: row.try_get::<Option<i64>, _>("since")?.map(|at| moment("since", at)).transpose()?,
        reason,
        sealed: sealed(row)?,
    })
}

fn sealed(row: &SqliteRow) -> sqlx::Result<Option<By>> {
    let by: Option<String> = row.try_get("sealed_by")?;
    match by.as_deref() {
        Some(BY_WITHDRAWAL) => Ok(Some(By::Withdrawal)),
        _ => Ok(operation(row, "sealed_by")?.map(By::Operation)),
    }
}

fn operation(row: &SqliteRow, column: &str) -> sqlx::Result<Option<OperationId>> {
    let id: Option<String> = row.try_get(column)?;
    id.map(|id| id.parse()).transpose().map_err(|error| not_ours(column, error))
}

fn mapping(row: &SqliteRow, boots: &mut Boots) -> sqlx::Result<Option<Evidence>> {
    let Some(scheme) = row.try_get::<Option<&str>, _>("scheme")? else { return Ok(None) };
    Ok(Some(Evidence {
        serial: text(row, "mapped_serial")?,
        scheme: scheme::by_name(scheme).map_or_else(|| scheme.to_owned().into(), |known| known.name().into()),
        link: row.try_get("device_path")?,
        devnum: row.try_get::<String, _>("devnum")?.parse().map_err(|()| not_ours("devnum", "a device number"))?,
        diskseq: row.try_get::<i64, _>("diskseq")?.cast_unsigned(),
        size_bytes: row.try_get::<i64, _>("mapped_bytes")?.cast_unsigned(),
        read_only: row.try_get("read_only")?,
        boot_id: boots.kept(row.try_get("boot_id")?),
        at: time(row, "proven_at")?,
    }))
}

pub(super) fn text<T: std::str::FromStr<Err: std::fmt::Display>>(row: &SqliteRow, column: &str) -> sqlx::Result<T> {
    row.try_get::<String, _>(column)?.parse().map_err(|error| not_ours(column, error))
}

pub(super) fn time(row: &SqliteRow, column: &str) -> sqlx::Result<Timestamp> {
    moment(column, row.try_get(column)?)
}

pub(super) fn moment(column: &str, micros: i64) -> sqlx::Result<Timestamp> {
    Timestamp::from_microsecond(micros).map_err(|error| not_ours(column, error))
}

/// Returns the error for a value that attachd did not write: somebody edited the file.
pub(super) fn not_ours(column: &str, why: impl std::fmt::Display) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: column.to_owned(), source: why.to_string().into() }
}
