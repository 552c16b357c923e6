-- Snapshots in CloudStack that callers of the predecessor's routes keep track of, one for each volume. They outlive the volume's mapping.
CREATE TABLE snapshots (
    volume_id     TEXT PRIMARY KEY,
    vm_context_id TEXT NOT NULL,
    snapshot_id   TEXT NOT NULL,
    name          TEXT NOT NULL,
    status        TEXT NOT NULL,
    created_at    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX snapshots_of_context ON snapshots (vm_context_id);
