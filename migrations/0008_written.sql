-- The request as its caller wrote it, of an operation that came by one of the predecessor's routes. NULL: it came by attachd's own.
ALTER TABLE operations ADD COLUMN written TEXT CHECK (written IS NULL OR json_valid(written));
