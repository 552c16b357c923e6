-- The truth: intents, mappings, timelines. Times are microseconds since 1970 in UTC.

CREATE TABLE intents (
    volume_id        TEXT PRIMARY KEY,
    serial           TEXT NOT NULL UNIQUE,
    vm_id            TEXT NOT NULL,
    size_bytes       INTEGER,
    deadline_seconds INTEGER,
    created_at       INTEGER NOT NULL,
    uid              INTEGER,
    state            TEXT NOT NULL,
    reason_code      TEXT,
    reason_message   TEXT,
    reason_hint      TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE mappings (
    volume_id   TEXT PRIMARY KEY REFERENCES intents (volume_id) ON DELETE CASCADE,
    serial      TEXT NOT NULL,
    scheme      TEXT NOT NULL,
    device_path TEXT NOT NULL,
    devnum      TEXT NOT NULL,
    diskseq     INTEGER NOT NULL,
    size_bytes  INTEGER NOT NULL,
    read_only   INTEGER NOT NULL,
    boot_id     TEXT NOT NULL,
    proven_at   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Outlives its volume by [history] days.
CREATE TABLE timeline (
    id        INTEGER PRIMARY KEY,
    volume_id TEXT NOT NULL,
    at        INTEGER NOT NULL,
    event     TEXT NOT NULL,
    detail    TEXT NOT NULL
) STRICT;

CREATE INDEX timeline_of_volume ON timeline (volume_id, id);
CREATE INDEX timeline_by_age ON timeline (at);

-- What the projection has yet to be told, in order. A row says how a volume looks from then on; no mapping: it is gone.
CREATE TABLE outbox (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    volume_id     TEXT NOT NULL,
    vm_id         TEXT NOT NULL,
    at            INTEGER NOT NULL,
    device_path   TEXT,
    size_bytes    INTEGER,
    export_status TEXT
) STRICT;

-- The projection: the predecessor's tables, with its names, columns and values, for those who read them with SQL.

CREATE TABLE device_mappings (
    id                          TEXT PRIMARY KEY,
    vm_context_id               TEXT,
    volume_uuid                 TEXT NOT NULL UNIQUE,
    volume_id_numeric           INTEGER,
    vm_id                       TEXT NOT NULL,
    operation_mode              TEXT DEFAULT 'oma' CHECK (operation_mode IN ('oma', 'failover')),
    cloudstack_device_id        INTEGER,
    requires_device_correlation INTEGER DEFAULT 1,
    device_path                 TEXT NOT NULL UNIQUE,
    cloudstack_state            TEXT NOT NULL,
    linux_state                 TEXT NOT NULL,
    size                        INTEGER NOT NULL,
    last_sync                   TEXT,
    created_at                  TEXT,
    updated_at                  TEXT,
    ossea_snapshot_id           TEXT,
    snapshot_created_at         TEXT,
    snapshot_status             TEXT DEFAULT 'none',
    persistent_device_name      TEXT,
    symlink_path                TEXT
);

CREATE TABLE nbd_exports (
    id                  INTEGER PRIMARY KEY AUTOINCREMENT,
    vm_context_id       TEXT,
    job_id              TEXT,
    volume_id           TEXT DEFAULT '',
    vm_disk_id          INTEGER,
    device_mapping_uuid TEXT,
    export_name         TEXT NOT NULL UNIQUE,
    port                INTEGER NOT NULL,
    device_path         TEXT NOT NULL,
    config_path         TEXT,
    status              TEXT DEFAULT 'pending',
    created_at          TEXT,
    updated_at          TEXT
);

CREATE INDEX nbd_exports_of_volume ON nbd_exports (volume_id);

CREATE TABLE volume_operations (
    id           TEXT PRIMARY KEY,
    type         TEXT NOT NULL CHECK (type IN ('create', 'attach', 'detach', 'delete', 'cleanup')),
    status       TEXT NOT NULL DEFAULT 'pending'
                 CHECK (status IN ('pending', 'executing', 'completed', 'failed', 'cancelled')),
    volume_id    TEXT NOT NULL,
    vm_id        TEXT,
    request      TEXT NOT NULL CHECK (json_valid(request)),
    response     TEXT CHECK (response IS NULL OR json_valid(response)),
    error        TEXT,
    created_at   TEXT,
    updated_at   TEXT,
    completed_at TEXT
);
