-- Operations whose row in volume_operations is not what is on record: one row for each, however often it changed. `refused`:
-- the table did not take it; tried again when it changes and at a start.
CREATE TABLE changed_operations (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT,
    operation_id TEXT NOT NULL UNIQUE,
    refused      INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TRIGGER operation_made AFTER INSERT ON operations BEGIN
    DELETE FROM changed_operations WHERE operation_id = NEW.id;
    INSERT INTO changed_operations (operation_id) VALUES (NEW.id);
END;

CREATE TRIGGER operation_changed AFTER UPDATE ON operations
WHEN OLD.state <> NEW.state OR OLD.volume_id IS NOT NEW.volume_id OR OLD.vm_id IS NOT NEW.vm_id
OR OLD.response IS NOT NEW.response OR OLD.fault IS NOT NEW.fault BEGIN
    DELETE FROM changed_operations WHERE operation_id = NEW.id;
    INSERT INTO changed_operations (operation_id) VALUES (NEW.id);
END;

CREATE TRIGGER operation_gone AFTER DELETE ON operations BEGIN
    DELETE FROM changed_operations WHERE operation_id = OLD.id;
    INSERT INTO changed_operations (operation_id) VALUES (OLD.id);
END;

INSERT INTO changed_operations (operation_id) SELECT id FROM operations ORDER BY number;
