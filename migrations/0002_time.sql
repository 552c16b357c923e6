-- Waiting goes by a clock that nobody can set: microseconds of CLOCK_BOOTTIME in the boot of that id, and how many were
-- left when that was last written down, for the next boot.
ALTER TABLE intents ADD COLUMN waits_boot  TEXT;
ALTER TABLE intents ADD COLUMN waits_until INTEGER;
ALTER TABLE intents ADD COLUMN waits_left  INTEGER;

-- Since when the volume is in its state.
ALTER TABLE intents ADD COLUMN since INTEGER;

-- The time that was really seen to pass, on top of the time the file was made: history is forgotten by this one, so that a
-- wall clock that jumps ahead takes nothing away.
CREATE TABLE clock (
    id      INTEGER PRIMARY KEY CHECK (id = 1),
    seen    INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    steady  INTEGER NOT NULL
) STRICT;

-- A story keeps its first hundred and its last nine hundred steps or so; what stands at the gap says so. Looked at for one
-- row in 61 (a prime: no pattern of rows can stay out of it): counting at each would cost more than the row.
CREATE TRIGGER story_limit AFTER INSERT ON timeline WHEN NEW.id % 61 = 0 BEGIN
    UPDATE timeline SET event = 'left-out', detail = 'a story keeps its first 100 and its last 900 steps: those between are left out'
    WHERE id = (SELECT id FROM timeline WHERE volume_id = NEW.volume_id ORDER BY id LIMIT 1 OFFSET 100)
    AND (SELECT count(*) FROM timeline WHERE volume_id = NEW.volume_id) > 1001;
    DELETE FROM timeline WHERE volume_id = NEW.volume_id
    AND id > (SELECT id FROM timeline WHERE volume_id = NEW.volume_id ORDER BY id LIMIT 1 OFFSET 100)
    AND id <= (SELECT id FROM timeline WHERE volume_id = NEW.volume_id ORDER BY id DESC LIMIT 1 OFFSET 900);
END;
