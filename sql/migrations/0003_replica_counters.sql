-- What replicas counted themselves, sample by sample, for the reconciler, which takes them. No figure rests on it.
CREATE TABLE IF NOT EXISTS replica_counters
(
    at DateTime64(3, 'UTC') COMMENT 'when it was asked',
    url String COMMENT 'the engine, without user and password',
    replicas Array(String) COMMENT 'what control calls it: more than one when it serves several models',
    started DateTime64(3, 'UTC') COMMENT 'when the engine began to count; 1970 if it does not say',
    prompt_tokens UInt64 COMMENT 'its counter of prompt tokens',
    generation_tokens UInt64 COMMENT 'its counter of generated tokens',
    open UInt64 COMMENT 'requests that it worked on, or that waited there'
)
ENGINE = MergeTree
ORDER BY (url, at)
TTL toDateTime(at) + INTERVAL 90 DAY;
