-- What a volume is sealed by: NULL: it is not; 'withdrawal': it goes when its clients are gone; else the id of an operation.
ALTER TABLE intents ADD COLUMN sealed_by TEXT;
UPDATE intents SET sealed_by = 'withdrawal' WHERE state = 'detaching';

-- The operation that has CloudStack attach the volume; NULL: it was announced, and somebody else attaches it.
ALTER TABLE intents ADD COLUMN operation_id TEXT;
