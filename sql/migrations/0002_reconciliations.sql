-- What the running reconciler found, run by run, for billing's API and the console. No figure rests on it.
CREATE TABLE IF NOT EXISTS reconciliations
(
    at DateTime64(3, 'UTC') COMMENT 'when the run began',
    from_hour Int64 COMMENT 'hours since 1970: the first log hour that was looked at',
    before_hour Int64 COMMENT 'the first one after those',
    duration_ms UInt64,
    differences UInt64 COMMENT 'how many there were; the report may hold fewer',
    pending UInt64 COMMENT 'how much could not be compared yet',
    report String COMMENT 'the whole, as JSON'
)
ENGINE = MergeTree
ORDER BY at
TTL toDateTime(at) + INTERVAL 30 DAY;
