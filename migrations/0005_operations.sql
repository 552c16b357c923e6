-- Operations: what callers asked for and can follow. A number is a place in the order in which they came, and is never used
-- twice. The volume of a create, and the VM of one that names none, come later. Times as elsewhere: microseconds; waiting
-- goes by the clock that nobody can set.
CREATE TABLE operations (
    number          INTEGER PRIMARY KEY AUTOINCREMENT,
    id              TEXT NOT NULL UNIQUE,
    type            TEXT NOT NULL,
    state           TEXT NOT NULL,
    settled         INTEGER NOT NULL,
    volume_id       TEXT,
    vm_id           TEXT,
    request         TEXT NOT NULL CHECK (json_valid(request)),
    progress        TEXT NOT NULL CHECK (json_valid(progress)),
    response        TEXT CHECK (response IS NULL OR json_valid(response)),
    fault           TEXT CHECK (fault IS NULL OR json_valid(fault)),
    idempotency_key TEXT,
    uid             INTEGER,
    limit_seconds   INTEGER NOT NULL,
    waits_boot      TEXT NOT NULL,
    waits_until     INTEGER NOT NULL,
    waits_left      INTEGER NOT NULL,
    created_at      INTEGER NOT NULL,
    updated_at      INTEGER NOT NULL,
    completed_at    INTEGER
) STRICT;

CREATE INDEX operations_of_volume ON operations (volume_id, number);
CREATE INDEX operations_open ON operations (number) WHERE NOT settled;
CREATE UNIQUE INDEX operations_by_key ON operations (ifnull(uid, -1), idempotency_key) WHERE idempotency_key IS NOT NULL;

-- Volumes that an operation had attached to another VM: not served here.
CREATE TABLE placeholders (
    volume_id    TEXT PRIMARY KEY,
    vm_id        TEXT NOT NULL,
    root         INTEGER NOT NULL,
    operation_id TEXT NOT NULL,
    since        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX placeholders_of_vm ON placeholders (vm_id);
