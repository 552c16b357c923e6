//! The predecessor's tables, as other programs read them.

use crate::shown::Shown;
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

/// The daemon's store with these tables, unless a test uses another path.
const STORE: &str = "/var/lib/attachd/attachd.db";

/// The query for this host's volumes in both tables, with what these show. Volumes of other VMs are operations' matter.
const ROWS: &str = "SELECT volume_uuid || '|' || device_mappings.device_path || ' ' || size || ' ' || linux_state || ' ' || status \
    FROM device_mappings LEFT JOIN nbd_exports ON export_name = 'migration-vol-' || volume_uuid \
    WHERE device_mappings.device_path NOT LIKE 'remote-vm-%'";

/// The query for volumes whose rows are not written yet.
const OWED: &str = "SELECT volume_id || '|' FROM changed";

/// Checks, after an orderly end, that the tables show each volume that has had a disk as the API has shown it, and no
/// other volume. Does nothing if health reports problems with the tables or with the store.
pub(crate) fn show(world: &Shown, problems: &BTreeSet<String>) -> Result<()> {
    let ours = fs::read(STORE).is_ok_and(|file| file.starts_with(b"SQLite format 3\0"));
    let failing = |code: &String| code.starts_with("PROJECTION_") || code.starts_with("STORE_");
    if !ours || problems.iter().any(failing) {
        return Ok(());
    }
    let owed: Vec<_> = read(OWED)?.into_keys().collect();
    ensure!(owed.is_empty(), "the daemon has ended in order, and the predecessor's tables do not show {owed:?}");
    let (shown, expected) = (world.resting(&read(ROWS)?), world.resting(&world.rows()));
    ensure!(shown == expected, "the predecessor's tables show {shown:#?}, and the API {expected:#?}");
    Ok(())
}

fn read(query: &str) -> Result<BTreeMap<String, String>> {
    let output = Command::new("sqlite3").args([STORE, query]).output().context("running sqlite3")?;
    ensure!(output.status.success(), "{query}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().filter_map(|line| line.split_once('|')).map(|(id, row)| (id.into(), row.into())).collect())
}
