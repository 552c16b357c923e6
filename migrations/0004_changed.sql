-- Which volumes have changed: one row for each, however often it did. Numbers only grow and are never used twice, so whoever
-- follows the changes keeps one number: up to where it is done. What a volume looks like now is in its own rows; none: it
-- is not wanted any more. A volume is noted from its first mapping on: before that there is nothing of it to show.
CREATE TABLE changed (
    seq       INTEGER PRIMARY KEY AUTOINCREMENT,
    volume_id TEXT NOT NULL UNIQUE
) STRICT;

-- Who follows them, how far each is, and what its rows depend on besides the volumes: with another one they are all owed again.
CREATE TABLE followers (
    name  TEXT PRIMARY KEY,
    done  INTEGER NOT NULL,
    basis TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- What a follower could not show, and passed by.
CREATE TABLE set_aside (
    follower  TEXT NOT NULL REFERENCES followers (name) ON DELETE CASCADE,
    volume_id TEXT NOT NULL,
    PRIMARY KEY (follower, volume_id)
) STRICT, WITHOUT ROWID;

-- Within the statement that changes the volume: the one that a disk waits for stays one statement. Deleted and inserted,
-- because a conflict clause in a trigger gives way to that of the statement outside.
CREATE TRIGGER mapping_made AFTER INSERT ON mappings BEGIN
    DELETE FROM changed WHERE volume_id = NEW.volume_id;
    INSERT INTO changed (volume_id) VALUES (NEW.volume_id);
END;

CREATE TRIGGER mapping_changed AFTER UPDATE ON mappings BEGIN
    DELETE FROM changed WHERE volume_id = NEW.volume_id;
    INSERT INTO changed (volume_id) VALUES (NEW.volume_id);
END;

-- Also when its intent takes it along.
CREATE TRIGGER mapping_gone AFTER DELETE ON mappings BEGIN
    DELETE FROM changed WHERE volume_id = OLD.volume_id;
    INSERT INTO changed (volume_id) VALUES (OLD.volume_id);
END;

CREATE TRIGGER volume_changed AFTER UPDATE OF vm_id, state, since ON intents
WHEN (OLD.state <> NEW.state OR OLD.since IS NOT NEW.since OR OLD.vm_id <> NEW.vm_id)
AND EXISTS (SELECT 1 FROM mappings WHERE volume_id = NEW.volume_id) BEGIN
    DELETE FROM changed WHERE volume_id = NEW.volume_id;
    INSERT INTO changed (volume_id) VALUES (NEW.volume_id);
END;

-- What earlier versions still owed, withdrawn volumes too, in its order. All that is mapped is owed anyhow: nobody follows yet.
INSERT INTO changed (volume_id) SELECT volume_id FROM outbox GROUP BY volume_id ORDER BY max(id);
DROP TABLE outbox;
