//! Writes and reads the snapshots that callers keep track of.

use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::batch::{Batch, Values};
use super::read::{text, time};
use crate::identity::VolumeId;
use crate::volume::{Snapshot, SnapshotNews};

/// Writes the snapshot of a volume, in place of an earlier one.
pub(super) fn track<'b>(batch: &'b mut Batch, snapshot: &Snapshot) -> Values<'b> {
    batch
        .add(
            "INSERT INTO snapshots (volume_id, vm_context_id, snapshot_id, name, status, created_at) \
             VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (volume_id) DO UPDATE SET vm_context_id = excluded.vm_context_id, \
             snapshot_id = excluded.snapshot_id, name = excluded.name, status = excluded.status, \
             created_at = excluded.created_at",
        )
        .bind(snapshot.volume.to_string())
        .bind(snapshot.vm_context.clone())
        .bind(snapshot.id.clone())
        .bind(snapshot.name.clone())
        .bind(snapshot.status.clone())
        .bind(snapshot.created_at.as_microsecond())
}

/// Changes what is said, in one statement, so that two callers that change different things both do.
pub(super) fn update<'b>(batch: &'b mut Batch, volume: VolumeId, news: &SnapshotNews) -> Values<'b> {
    batch
        .add(
            "UPDATE snapshots SET snapshot_id = coalesce(?, snapshot_id), name = coalesce(?, name), \
             status = coalesce(?, status) WHERE volume_id = ?",
        )
        .bind(news.id.clone())
        .bind(news.name.clone())
        .bind(news.status.clone())
        .bind(volume.to_string())
}

/// Forgets the snapshots of a context.
pub(super) fn forget<'b>(batch: &'b mut Batch, vm_context: &str) -> Values<'b> {
    batch.add("DELETE FROM snapshots WHERE vm_context_id = ?").bind(vm_context.to_owned())
}

/// Returns how many there are.
pub(super) async fn count(connection: &mut SqliteConnection) -> sqlx::Result<u64> {
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM snapshots").fetch_one(connection).await?;
    Ok(count.unsigned_abs())
}

/// Returns the snapshot of a volume.
pub(super) async fn of_volume(connection: &mut SqliteConnection, volume: VolumeId) -> sqlx::Result<Option<Snapshot>> {
    let query = sqlx::query("SELECT * FROM snapshots WHERE volume_id = ?").bind(volume.to_string());
    query.fetch_optional(connection).await?.map(|row| snapshot(&row)).transpose()
}

/// Returns the snapshots of a context, by volume.
pub(super) async fn of_context(connection: &mut SqliteConnection, vm_context: &str) -> sqlx::Result<Vec<Snapshot>> {
    let query = sqlx::query("SELECT * FROM snapshots WHERE vm_context_id = ? ORDER BY volume_id").bind(vm_context);
    query.fetch_all(connection).await?.iter().map(snapshot).collect()
}

fn snapshot(row: &SqliteRow) -> sqlx::Result<Snapshot> {
    Ok(Snapshot {
        volume: text(row, "volume_id")?,
        vm_context: row.try_get("vm_context_id")?,
        id: row.try_get("snapshot_id")?,
        name: row.try_get("name")?,
        status: row.try_get("status")?,
        created_at: time(row, "created_at")?,
    })
}
