-- Where in a part an offset can lie: whoever reads a stretch of the log reads no rows of all the rest of the month. Of rows that were
-- there before it is made in the background.
ALTER TABLE tokens ADD INDEX IF NOT EXISTS offsets kafka_offset TYPE minmax GRANULARITY 1;

ALTER TABLE tokens MATERIALIZE INDEX IF EXISTS offsets;

ALTER TABLE requests ADD INDEX IF NOT EXISTS offsets kafka_offset TYPE minmax GRANULARITY 1;

ALTER TABLE requests MATERIALIZE INDEX IF EXISTS offsets;
