-- The first chunk that ends in each hour of the log: what lies behind it is of that hour or later.
SELECT log_hour AS hour, min(chunk_first) AS first, min(chunk_end) AS end
FROM tokens
WHERE kafka_partition = {partition:Int32} AND kind = 'chunk' AND tenant_id = '' AND kafka_offset >= {since:Int64}
GROUP BY log_hour
ORDER BY log_hour
