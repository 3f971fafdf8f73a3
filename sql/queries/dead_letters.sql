-- Dead letters of a line in the order of the log.
SELECT kafka_offset AS offset, toUnixTimestamp64Milli(log_time) AS log_time_ms, dead_reason AS reason, dead_detail AS detail,
    dead_key AS key, dead_value AS value, source, seq, event_id
FROM {table:Identifier}
WHERE kafka_partition = {partition:Int32} AND tenant_id = '' AND kind = 'dead' AND kafka_offset >= {from:Int64}
ORDER BY kafka_offset
LIMIT {limit:UInt64}
