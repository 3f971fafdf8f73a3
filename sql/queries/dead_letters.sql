-- Dead letters of a topic in the order of the log: from a place on, of one line or all, by reason and by when Kafka took them.
SELECT kafka_partition AS line, kafka_offset AS offset, toUnixTimestamp64Milli(log_time) AS log_time_ms, dead_reason AS reason,
    dead_detail AS detail, if({whole:Bool}, dead_key, NULL) AS key, if({whole:Bool}, dead_value, NULL) AS value,
    length(dead_value) AS bytes, source, seq, event_id
FROM {table:Identifier}
WHERE tenant_id = '' AND kind = 'dead'
  AND (kafka_partition > {from_partition:Int32}
      OR (kafka_partition = {from_partition:Int32} AND kafka_offset >= {from_offset:Int64}))
  AND kafka_partition <= {last_partition:Int32}
  AND ({reason:String} = '' OR dead_reason = {reason:String})
  AND toUnixTimestamp64Milli(log_time) >= {since_ms:Int64}
  AND toUnixTimestamp64Milli(log_time) < {before_ms:Int64}
ORDER BY line, offset
LIMIT {limit:UInt64}
