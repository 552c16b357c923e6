//! What is said to MariaDB about a volume. Each statement may be repeated, and then changes nothing.
//!
//! Other programs write into these rows too. An existing row is updated, only in attachd's columns; whether there is one
//! is told by the count of rows that the update has found (docs/projection.md).

use sqlx::mysql::{MySqlArguments, MySqlConnection};
use sqlx::{MySql, query::Query};

use super::super::{Mode, Rows, ShownVolume};

/// A row of the other kind is of an earlier life of the volume: it was withdrawn here and then attached to another VM, or
/// the reverse, and only the end was seen.
const DELETE_EARLIER: &str =
    "DELETE FROM device_mappings WHERE volume_uuid = ? AND (device_path LIKE 'remote-vm-%') <> ?";

const UPDATE_MAPPING: &str = "UPDATE device_mappings SET vm_id = ?, device_path = ?, linux_state = ?, size = ?, \
    last_sync = ?, updated_at = ? WHERE volume_uuid = ?";

const INSERT_MAPPING: &str = "INSERT INTO device_mappings (id, vm_context_id, volume_uuid, vm_id, operation_mode, \
    requires_device_correlation, cloudstack_device_id, device_path, cloudstack_state, linux_state, size, last_sync, \
    created_at, updated_at) VALUES (?, (SELECT context.context_id FROM ossea_volumes volume \
    JOIN vm_replication_contexts context ON context.context_id = volume.vm_context_id WHERE volume.volume_id = ?), \
    ?, ?, ?, ?, ?, ?, 'attached', ?, ?, ?, ?, ?)";

const UPDATE_EXPORT: &str =
    "UPDATE nbd_exports SET port = ?, device_path = ?, status = ?, updated_at = ? WHERE export_name = ?";

const INSERT_EXPORT: &str = "INSERT INTO nbd_exports (vm_context_id, volume_id, device_mapping_uuid, export_name, port, \
    device_path, status, created_at, updated_at) VALUES ((SELECT context.context_id FROM ossea_volumes volume \
    JOIN vm_replication_contexts context ON context.context_id = volume.vm_context_id WHERE volume.volume_id = ?), \
    ?, ?, ?, ?, ?, ?, ?, ?)";

const DELETE_EXPORT: &str = "DELETE FROM nbd_exports WHERE export_name = ?";

const DELETE_MAPPING: &str = "DELETE FROM device_mappings WHERE volume_uuid = ?";

/// The row is oma-api's; there may be none.
const UPDATE_VOLUME: &str = "UPDATE ossea_volumes SET device_path = ?, status = ? WHERE volume_id = ?";

/// Statements that touch no row, and fail if the tables, their columns, the rights or the server take no write.
const PROBES: [&str; 6] = [
    "UPDATE device_mappings SET vm_id = '', device_path = '', linux_state = '', size = 0, last_sync = NULL, \
     updated_at = NULL WHERE FALSE",
    "DELETE FROM device_mappings WHERE FALSE",
    "UPDATE nbd_exports SET port = 0, device_path = '', status = '', updated_at = NULL WHERE FALSE",
    "DELETE FROM nbd_exports WHERE FALSE",
    "UPDATE ossea_volumes SET device_path = NULL, status = '' WHERE FALSE",
    "SELECT context_id FROM vm_replication_contexts WHERE FALSE",
];

/// A statement with its values.
type Statement<'q> = Query<'q, MySql, MySqlArguments>;

/// Makes the rows of one volume what they should be.
pub(super) async fn show(connection: &mut MySqlConnection, rows: &Rows, port: u16) -> sqlx::Result<()> {
    let id = rows.volume.to_string();
    match &rows.present {
        Some(present) => shown(connection, &id, rows.volume.export_name(), present, port).await,
        None => removed(connection, &id, rows.volume.export_name()).await,
    }
}

async fn shown(
    connection: &mut MySqlConnection,
    id: &str,
    export: String,
    present: &ShownVolume,
    port: u16,
) -> sqlx::Result<()> {
    let ShownVolume { mode, vm_id, device_path, size_bytes, linux_state, export_status, at } = present;
    let (mode, elsewhere, device_id) = match mode {
        Mode::Here => ("oma", false, None),
        Mode::Elsewhere { root } => ("failover", true, root.then_some(0_i64)),
    };
    let at = at.strftime("%Y-%m-%d %H:%M:%S%.3f").to_string();
    run(connection, sqlx::query(DELETE_EARLIER).bind(id).bind(elsewhere)).await?;
    let update = sqlx::query(UPDATE_MAPPING).bind(vm_id).bind(device_path).bind(linux_state).bind(size_bytes);
    if run(connection, update.bind(&at).bind(&at).bind(id)).await? == 0 {
        let insert = sqlx::query(INSERT_MAPPING).bind(id).bind(id).bind(id).bind(vm_id).bind(mode);
        let insert = insert.bind(!elsewhere).bind(device_id).bind(device_path).bind(linux_state).bind(size_bytes);
        run(connection, insert.bind(&at).bind(&at).bind(&at)).await?;
    }
    match export_status {
        None => drop(run(connection, sqlx::query(DELETE_EXPORT).bind(export)).await?),
        Some(status) => {
            let update = sqlx::query(UPDATE_EXPORT).bind(port).bind(device_path).bind(status).bind(&at).bind(&export);
            if run(connection, update).await? == 0 {
                let insert = sqlx::query(INSERT_EXPORT).bind(id).bind(id).bind(id).bind(&export).bind(port);
                run(connection, insert.bind(device_path).bind(status).bind(&at).bind(&at)).await?;
            }
        }
    }
    run(connection, sqlx::query(UPDATE_VOLUME).bind(device_path).bind("attached").bind(id)).await?;
    Ok(())
}

async fn removed(connection: &mut MySqlConnection, id: &str, export: String) -> sqlx::Result<()> {
    run(connection, sqlx::query(DELETE_EXPORT).bind(export)).await?;
    run(connection, sqlx::query(DELETE_MAPPING).bind(id)).await?;
    run(connection, sqlx::query(UPDATE_VOLUME).bind(None::<&str>).bind("detached").bind(id)).await?;
    Ok(())
}

/// Runs a statement and returns how many rows it has found.
async fn run(connection: &mut MySqlConnection, statement: Statement<'_>) -> sqlx::Result<u64> {
    Ok(statement.execute(connection).await?.rows_affected())
}

/// Returns an error if the tables take no write at all.
pub(super) async fn probe(connection: &mut MySqlConnection) -> sqlx::Result<()> {
    for statement in PROBES {
        sqlx::raw_sql(statement).execute(&mut *connection).await?;
    }
    Ok(())
}
