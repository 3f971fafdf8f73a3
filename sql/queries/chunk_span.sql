-- Which offsets of a line the chunks of some hours of the log hold, and in which months their parts lie.
SELECT
    count() AS chunks,
    min(chunk_first) AS first,
    max(chunk_end) AS end,
    min(log_month) AS month_from,
    max(log_month) AS month_to
FROM {table:Identifier}
WHERE kafka_partition = {partition:Int32} AND kind = 'chunk' AND tenant_id = ''
  AND log_hour >= {log_from:Int64} AND log_hour < {log_before:Int64}
