//! The projection: the predecessor's tables, told in order what has changed.

use jiff::Timestamp;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::batch::Batch;
use super::write;
use crate::effect;
use crate::identity::EXPORT_PREFIX;

/// Rows applied in one transaction.
const AT_ONCE: i64 = 1000;

/// Applies some of what waits; false when nothing did. Repeating a row changes nothing.
pub(super) async fn apply(connection: &mut SqliteConnection, port: u16) -> sqlx::Result<bool> {
    let rows = sqlx::query(
        "SELECT id, volume_id, vm_id, at, device_path, size_bytes, export_status FROM outbox ORDER BY id LIMIT ?",
    )
    .bind(AT_ONCE)
    .fetch_all(&mut *connection)
    .await?;
    let Some(last) = rows.last() else { return Ok(false) };
    let last: i64 = last.try_get("id")?;
    effect::at_all(&["commit.projection"], async {
        write::begin(connection).await?;
        let applied = project_all(connection, &rows, last, port).await;
        write::end(connection, applied).await
    })
    .await?;
    Ok(true)
}

async fn project_all(connection: &mut SqliteConnection, rows: &[SqliteRow], last: i64, port: u16) -> sqlx::Result<()> {
    let mut batch = Batch::default();
    for row in rows {
        project(&mut batch, row, port)?;
    }
    batch.add("DELETE FROM outbox WHERE id <= ?").bind(last);
    batch.run(connection).await
}

fn project(batch: &mut Batch, row: &SqliteRow, port: u16) -> sqlx::Result<()> {
    let volume: String = row.try_get("volume_id")?;
    let export = format!("{EXPORT_PREFIX}{volume}");
    let at = Timestamp::from_microsecond(row.try_get("at")?).unwrap_or_default();
    let at = at.strftime("%Y-%m-%d %H:%M:%S%.3f").to_string();
    let path: Option<String> = row.try_get("device_path")?;
    let status: Option<String> = row.try_get("export_status")?;
    if let Some(path) = &path {
        batch
            .add(
                "INSERT INTO device_mappings \
                 (id, volume_uuid, vm_id, operation_mode, requires_device_correlation, device_path, cloudstack_state, \
                  linux_state, size, last_sync, created_at, updated_at) \
                 VALUES (?, ?, ?, 'oma', 1, ?, 'attached', 'detected', ?, ?, ?, ?) \
                 ON CONFLICT (volume_uuid) DO UPDATE SET vm_id = excluded.vm_id, device_path = excluded.device_path, \
                 size = excluded.size, last_sync = excluded.last_sync, updated_at = excluded.updated_at",
            )
            .bind(&volume)
            .bind(&volume)
            .bind(row.try_get::<String, _>("vm_id")?)
            .bind(path)
            .bind(row.try_get::<Option<i64>, _>("size_bytes")?.unwrap_or(0))
            .bind(&at)
            .bind(&at)
            .bind(&at);
    } else {
        batch.add("DELETE FROM device_mappings WHERE volume_uuid = ?").bind(&volume);
    }
    if let (Some(path), Some(status)) = (path, status) {
        batch
            .add(
                "INSERT INTO nbd_exports \
                 (volume_id, device_mapping_uuid, export_name, port, device_path, status, created_at, updated_at) \
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (export_name) DO UPDATE SET \
                 port = excluded.port, device_path = excluded.device_path, status = excluded.status, \
                 updated_at = excluded.updated_at",
            )
            .bind(&volume)
            .bind(&volume)
            .bind(&export)
            .bind(i64::from(port))
            .bind(path)
            .bind(status)
            .bind(&at)
            .bind(&at);
    } else {
        batch.add("DELETE FROM nbd_exports WHERE export_name = ?").bind(&export);
    }
    Ok(())
}
