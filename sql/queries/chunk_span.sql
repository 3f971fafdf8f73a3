-- Which offsets of a line the chunks of some hours of the log hold, and from which offset on the rows of those hours lie, and of
-- some hours before. Log hours never go back: while a chunk begins at `since`, those before it are of hours that are known.
SELECT
    countIf(log_hour >= {log_from:Int64} AND log_hour < {log_before:Int64}) AS chunks,
    minIf(chunk_first, log_hour >= {log_from:Int64} AND log_hour < {log_before:Int64}) AS first,
    maxIf(chunk_end, log_hour >= {log_from:Int64} AND log_hour < {log_before:Int64}) AS end,
    minIf(chunk_first, log_hour >= {log_from:Int64}) AS rows_from,
    minIf(chunk_first, log_hour >= {log_wide:Int64}) AS wide_from,
    countIf(log_hour >= {log_from:Int64}) AS chunks_from,
    countIf(log_hour >= {log_wide:Int64}) AS chunks_wide,
    countIf(chunk_first = {since:Int64}) AS known
FROM {table:Identifier}
WHERE kafka_partition = {partition:Int32} AND kind = 'chunk' AND tenant_id = '' AND kafka_offset >= {since:Int64}
