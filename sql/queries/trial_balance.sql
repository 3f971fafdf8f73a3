-- Sums per line and log hour: read once through the projection and once from the rows, they must be the same. Rows are read of
-- one partition, none of which lies before the offset `since`; where that is 0 the offset is not looked at, and a projection will do.
SELECT
    kafka_partition, log_hour,
    count() AS row_count,
    sum(input) AS input_tokens,
    sum(cached_input) AS cached_input_tokens,
    sum(output) AS output_tokens,
    sum(reasoning) AS reasoning_tokens,
    sum(requests) AS request_count
FROM tokens
WHERE kind = 'data' AND log_hour >= {log_from:Int64} AND log_hour < {log_before:Int64}
  AND ({partition:Int32} < 0 OR kafka_partition = {partition:Int32})
  AND ({since:Int64} <= 0 OR kafka_offset >= {since:Int64})
GROUP BY kafka_partition, log_hour
ORDER BY kafka_partition, log_hour
