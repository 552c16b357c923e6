//! The target in the store's own file: two tables that migrations have made.
//!
//! Other programs write into these rows too. So an existing row is updated, only in attachd's columns, and a missing
//! row is inserted. These are two statements, because an insert must meet conditions (of columns that somebody has
//! added, for instance) that an existing row already meets.

use super::judge::{LIMIT, judged};
use super::{Mode, Rows, ShownVolume, Target, TargetError};
use crate::effect;
use crate::identity::VolumeId;
use crate::store::batch::Batch;
use crate::store::{Follower, WriteConnection};

/// A row of the other kind is of an earlier life of the volume: it was withdrawn here and then attached to another VM, or
/// the reverse, and only the end was seen.
const DELETE_EARLIER: &str =
    "DELETE FROM device_mappings WHERE volume_uuid = ? AND (device_path LIKE 'remote-vm-%') <> ?";

const UPDATE_MAPPING: &str = "UPDATE device_mappings SET vm_id = ?, device_path = ?, linux_state = ?, size = ?, \
    last_sync = ?, updated_at = ? WHERE volume_uuid = ?";

const INSERT_MAPPING: &str = "INSERT INTO device_mappings (id, volume_uuid, vm_id, operation_mode, \
    requires_device_correlation, cloudstack_device_id, device_path, cloudstack_state, linux_state, size, last_sync, \
    created_at, updated_at) SELECT ?, ?, ?, ?, ?, ?, ?, 'attached', ?, ?, ?, ?, ? \
    WHERE NOT EXISTS (SELECT 1 FROM device_mappings WHERE volume_uuid = ?)";

const UPDATE_EXPORT: &str =
    "UPDATE nbd_exports SET port = ?, device_path = ?, status = ?, updated_at = ? WHERE export_name = ?";

const INSERT_EXPORT: &str = "INSERT INTO nbd_exports (volume_id, device_mapping_uuid, export_name, port, device_path, \
    status, created_at, updated_at) SELECT ?, ?, ?, ?, ?, ?, ?, ? \
    WHERE NOT EXISTS (SELECT 1 FROM nbd_exports WHERE export_name = ?)";

const DELETE_EXPORT: &str = "DELETE FROM nbd_exports WHERE export_name = ?";

const DELETE_MAPPING: &str = "DELETE FROM device_mappings WHERE volume_uuid = ?";

/// The target in the store's own file.
pub struct Sqlite {
    port: u16,
}

impl Sqlite {
    /// `port` is the NBD server's.
    pub fn new(port: u16) -> Self {
        Self { port }
    }

    async fn written(&self, connection: &mut WriteConnection, rows: &[Rows]) -> sqlx::Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::default();
        for Rows { volume, present } in rows {
            match present {
                Some(present) => show(&mut batch, *volume, present, self.port),
                None => remove(&mut batch, *volume),
            }
        }
        effect::at_all(&["commit.projection"], async {
            connection.begin().await?;
            let applied = batch.run(connection).await;
            connection.end(applied).await
        })
        .await
    }
}

/// All statements of a write.
const STATEMENTS: [&str; 7] =
    [DELETE_EARLIER, UPDATE_MAPPING, INSERT_MAPPING, UPDATE_EXPORT, INSERT_EXPORT, DELETE_EXPORT, DELETE_MAPPING];

impl Target<Rows> for Sqlite {
    async fn write(&mut self, rows: &[Rows], follower: &mut Follower) -> Result<(), TargetError> {
        let (_turn, connection) =
            follower.at_the_file(Some(LIMIT)).await.map_err(|error| TargetError::Away(error.to_string()))?;
        let Err(error) = self.written(connection, rows).await else { return Ok(()) };
        let failure = judged(connection, &error, &STATEMENTS).await;
        follower.failed(&error);
        Err(failure)
    }
}

fn show(batch: &mut Batch, volume: VolumeId, present: &ShownVolume, port: u16) {
    let ShownVolume { mode, vm_id, device_path, size_bytes, linux_state, export_status, at } = present;
    let (mode, elsewhere, device_id) = match mode {
        Mode::Here => ("oma", false, None),
        Mode::Elsewhere { root } => ("failover", true, root.then_some(0_i64)),
    };
    let (id, export) = (volume.to_string(), volume.export_name());
    let at = at.strftime("%Y-%m-%d %H:%M:%S%.3f").to_string();
    batch.add(DELETE_EARLIER).bind(&id).bind(elsewhere);
    batch
        .add(UPDATE_MAPPING)
        .bind(vm_id)
        .bind(device_path)
        .bind(*linux_state)
        .bind(*size_bytes)
        .bind(&at)
        .bind(&at)
        .bind(&id);
    batch
        .add(INSERT_MAPPING)
        .bind(&id)
        .bind(&id)
        .bind(vm_id)
        .bind(mode)
        .bind(i64::from(!elsewhere))
        .bind(device_id)
        .bind(device_path)
        .bind(*linux_state)
        .bind(*size_bytes)
        .bind(&at)
        .bind(&at)
        .bind(&at)
        .bind(&id);
    let Some(export_status) = export_status else {
        batch.add(DELETE_EXPORT).bind(export);
        return;
    };
    let port = i64::from(port);
    batch.add(UPDATE_EXPORT).bind(port).bind(device_path).bind(*export_status).bind(&at).bind(&export);
    batch
        .add(INSERT_EXPORT)
        .bind(&id)
        .bind(&id)
        .bind(&export)
        .bind(port)
        .bind(device_path)
        .bind(*export_status)
        .bind(&at)
        .bind(&at)
        .bind(&export);
}

fn remove(batch: &mut Batch, volume: VolumeId) {
    batch.add(DELETE_EXPORT).bind(volume.export_name());
    batch.add(DELETE_MAPPING).bind(volume.to_string());
}
