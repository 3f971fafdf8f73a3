-- What the migrations add up to. Written by ClickHouse; a test compares.

CREATE TABLE migrations
(
    `number` UInt32,
    `name` String,
    `checksum` String,
    `applied_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (number, checksum)
SETTINGS index_granularity = 8192;

CREATE TABLE reconciliations
(
    `at` DateTime64(3, 'UTC') COMMENT 'when the run began',
    `from_hour` Int64 COMMENT 'hours since 1970: the first log hour that was looked at',
    `before_hour` Int64 COMMENT 'the first one after those',
    `duration_ms` UInt64,
    `differences` UInt64 COMMENT 'how many there were; the report may hold fewer',
    `pending` UInt64 COMMENT 'how much could not be compared yet',
    `report` String COMMENT 'the whole, as JSON'
)
ENGINE = MergeTree
ORDER BY at
TTL toDateTime(at) + toIntervalDay(30)
SETTINGS index_granularity = 8192;

CREATE TABLE replica_counters
(
    `at` DateTime64(3, 'UTC') COMMENT 'when it was asked',
    `url` String COMMENT 'the engine, without user and password',
    `replicas` Array(String) COMMENT 'what control calls it: more than one when it serves several models',
    `started` DateTime64(3, 'UTC') COMMENT 'when the engine began to count; 1970 if it does not say',
    `prompt_tokens` UInt64 COMMENT 'its counter of prompt tokens',
    `generation_tokens` UInt64 COMMENT 'its counter of generated tokens',
    `open` UInt64 COMMENT 'requests that it worked on, or that waited there'
)
ENGINE = MergeTree
ORDER BY (url, at)
TTL toDateTime(at) + toIntervalDay(90)
SETTINGS index_granularity = 8192;

CREATE TABLE requests
(
    `kafka_partition` Int32,
    `log_month` UInt32 COMMENT 'yyyymm of the record at the chunk\'s first offset',
    `kind` Enum8('data' = 1, 'dead' = 2, 'source' = 3, 'chunk' = 4),
    `kafka_offset` Int64 COMMENT 'of the record; of a source or chunk row: the first of the chunk',
    `log_time` DateTime64(3, 'UTC') COMMENT 'LogAppendTime made monotone; of a chunk row: at its end',
    `log_hour` Int64 COMMENT 'hours since 1970 of log_time: decides which invoice a row falls into',
    `insert_before` DateTime64(3, 'UTC') COMMENT 'the fence: ClickHouse refuses the row after it',
    `event_id` UUID,
    `source` UUID,
    `seq` UInt64,
    `occurred_at` DateTime64(6, 'UTC'),
    `slot` Int64 COMMENT 'quarters of an hour since 1970 of occurred_at',
    `tenant_id` LowCardinality(String),
    `request_id` UUID,
    `attempts` Int32,
    `project_id` LowCardinality(String),
    `api_key_id` UUID,
    `model` LowCardinality(String),
    `version` LowCardinality(String),
    `replica` LowCardinality(String),
    `endpoint` LowCardinality(String),
    `stream` Bool,
    `status` Int32,
    `end_reason` LowCardinality(String),
    `error_code` LowCardinality(String),
    `received_at` DateTime64(6, 'UTC'),
    `dispatched_at` Nullable(DateTime64(6, 'UTC')),
    `first_byte_at` Nullable(DateTime64(6, 'UTC')),
    `dead_reason` LowCardinality(String),
    `dead_detail` String,
    `dead_key` Nullable(String),
    `dead_value` Nullable(String),
    `last_seq` UInt64,
    `watermark` Int64 COMMENT 'microseconds since 1970',
    `source_end` Enum8('open' = 0, 'closed' = 1, 'drained' = 2),
    `next_source` UUID,
    `chunk_first` Int64,
    `chunk_end` Int64,
    `folded` Int64,
    `duplicates` Int64,
    `dead` Int64,
    `marks` Int64,
    `chain` FixedString(32),
    INDEX sources source TYPE bloom_filter GRANULARITY 1,
    INDEX offsets kafka_offset TYPE minmax GRANULARITY 1,
    CONSTRAINT fence CHECK insert_before > nowInBlock64(3),
    PROJECTION position
    (
        SELECT
            kind,
            source,
            kafka_partition,
            count(),
            min(chunk_first),
            max(chunk_end),
            sum(chunk_end - chunk_first),
            sum((chunk_end * chunk_end) - (chunk_first * chunk_first)),
            sum(folded),
            sum(duplicates),
            sum(dead),
            sum(marks),
            max(log_time),
            argMax(chain, chunk_end),
            argMax((last_seq, watermark, source_end, next_source), chunk_first)
        GROUP BY
            kind,
            source,
            kafka_partition
    ),
    PROJECTION ends
    (
        SELECT
            kind,
            tenant_id,
            slot,
            model,
            endpoint,
            status,
            end_reason,
            log_hour,
            kafka_partition,
            count(),
            sum(folded),
            sum(attempts)
        GROUP BY
            kind,
            tenant_id,
            slot,
            model,
            endpoint,
            status,
            end_reason,
            log_hour,
            kafka_partition
    )
)
ENGINE = MergeTree
PARTITION BY (kafka_partition, log_month)
ORDER BY (tenant_id, occurred_at, kafka_offset)
SETTINGS non_replicated_deduplication_window = 100000, fsync_after_insert = 1, fsync_part_directory = 1, index_granularity = 8192;

CREATE TABLE tokens
(
    `kafka_partition` Int32,
    `log_month` UInt32 COMMENT 'yyyymm of the record at the chunk\'s first offset',
    `kind` Enum8('data' = 1, 'dead' = 2, 'source' = 3, 'chunk' = 4),
    `kafka_offset` Int64 COMMENT 'of the record; of a source or chunk row: the first of the chunk',
    `log_time` DateTime64(3, 'UTC') COMMENT 'LogAppendTime made monotone; of a chunk row: at its end',
    `log_hour` Int64 COMMENT 'hours since 1970 of log_time: decides which invoice a row falls into',
    `insert_before` DateTime64(3, 'UTC') COMMENT 'the fence: ClickHouse refuses the row after it',
    `event_id` UUID,
    `source` UUID,
    `seq` UInt64,
    `occurred_at` DateTime64(6, 'UTC'),
    `slot` Int64 COMMENT 'quarters of an hour since 1970 of occurred_at',
    `tenant_id` LowCardinality(String),
    `request_id` UUID,
    `attempt` Int32,
    `project_id` LowCardinality(String),
    `api_key_id` UUID,
    `model` LowCardinality(String),
    `version` LowCardinality(String),
    `replica` LowCardinality(String),
    `endpoint` LowCardinality(String),
    `input` UInt64,
    `cached_input` UInt64,
    `output` UInt64,
    `reasoning` UInt64,
    `input_cumulative` UInt64,
    `cached_input_cumulative` UInt64,
    `output_cumulative` UInt64,
    `reasoning_cumulative` UInt64,
    `requests` UInt64,
    `final` Bool,
    `estimated` Bool,
    `end_reason` LowCardinality(String),
    `dead_reason` LowCardinality(String),
    `dead_detail` String,
    `dead_key` Nullable(String),
    `dead_value` Nullable(String),
    `last_seq` UInt64,
    `watermark` Int64 COMMENT 'microseconds since 1970',
    `source_end` Enum8('open' = 0, 'closed' = 1, 'drained' = 2),
    `next_source` UUID,
    `chunk_first` Int64,
    `chunk_end` Int64,
    `folded` Int64,
    `duplicates` Int64,
    `dead` Int64,
    `marks` Int64,
    `chain` FixedString(32),
    INDEX sources source TYPE bloom_filter GRANULARITY 1,
    INDEX offsets kafka_offset TYPE minmax GRANULARITY 1,
    CONSTRAINT fence CHECK insert_before > nowInBlock64(3),
    PROJECTION position
    (
        SELECT
            kind,
            source,
            kafka_partition,
            count(),
            min(chunk_first),
            max(chunk_end),
            sum(chunk_end - chunk_first),
            sum((chunk_end * chunk_end) - (chunk_first * chunk_first)),
            sum(folded),
            sum(duplicates),
            sum(dead),
            sum(marks),
            max(log_time),
            argMax(chain, chunk_end),
            argMax((last_seq, watermark, source_end, next_source), chunk_first)
        GROUP BY
            kind,
            source,
            kafka_partition
    ),
    PROJECTION billing
    (
        SELECT
            kind,
            tenant_id,
            slot,
            project_id,
            api_key_id,
            model,
            version,
            endpoint,
            log_hour,
            kafka_partition,
            count(),
            sum(input),
            sum(cached_input),
            sum(output),
            sum(reasoning),
            sum(requests)
        GROUP BY
            kind,
            tenant_id,
            slot,
            project_id,
            api_key_id,
            model,
            version,
            endpoint,
            log_hour,
            kafka_partition
    ),
    PROJECTION replicas
    (
        SELECT
            kind,
            replica,
            model,
            intDiv(slot, 4) AS hour,
            count(),
            sum(input),
            sum(cached_input),
            sum(output),
            sum(reasoning),
            sum(requests)
        GROUP BY
            kind,
            replica,
            model,
            hour
    )
)
ENGINE = MergeTree
PARTITION BY (kafka_partition, log_month)
ORDER BY (tenant_id, occurred_at, kafka_offset)
SETTINGS non_replicated_deduplication_window = 100000, fsync_after_insert = 1, fsync_part_directory = 1, index_granularity = 8192;
