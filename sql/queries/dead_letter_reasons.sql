-- How many dead letters of a topic there are by reason: of one line or all, by when Kafka took them.
SELECT dead_reason AS reason, count() AS letters
FROM {table:Identifier}
WHERE tenant_id = '' AND kind = 'dead'
  AND kafka_partition BETWEEN {first_partition:Int32} AND {last_partition:Int32}
  AND toUnixTimestamp64Milli(log_time) >= {since_ms:Int64}
  AND toUnixTimestamp64Milli(log_time) < {before_ms:Int64}
GROUP BY reason
ORDER BY reason
