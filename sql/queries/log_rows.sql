-- Records of a log on their way into a Parquet file or out of one: in memory alone, and dropped afterwards.
CREATE TABLE {table:Identifier}
(
    kafka_offset Int64,
    log_time DateTime64(3, 'UTC') COMMENT 'LogAppendTime as the broker gave it',
    key Nullable(String),
    value Nullable(String),
    header_names Array(String),
    header_values Array(String)
)
ENGINE = Memory
