-- A volume that an operation had attached to another VM is shown in the predecessor's tables, too: its placeholder is noted as a
-- mapping is.
CREATE TRIGGER placeholder_made AFTER INSERT ON placeholders BEGIN
    DELETE FROM changed WHERE volume_id = NEW.volume_id;
    INSERT INTO changed (volume_id) VALUES (NEW.volume_id);
END;

CREATE TRIGGER placeholder_changed AFTER UPDATE ON placeholders BEGIN
    DELETE FROM changed WHERE volume_id = NEW.volume_id;
    INSERT INTO changed (volume_id) VALUES (NEW.volume_id);
END;

CREATE TRIGGER placeholder_gone AFTER DELETE ON placeholders BEGIN
    DELETE FROM changed WHERE volume_id = OLD.volume_id;
    INSERT INTO changed (volume_id) VALUES (OLD.volume_id);
END;

INSERT INTO changed (volume_id)
SELECT volume_id FROM placeholders WHERE volume_id NOT IN (SELECT volume_id FROM changed);
