-- The months of a line's log, each a partition of the table: what its chunks hold, and how many of their rows are those of a sealed month.
SELECT
    log_month AS month,
    count() AS chunk_rows,
    countIf(seq > 0) AS sealed_rows,
    sum(greatest(seq, 1)) AS chunks,
    min(chunk_first) AS first,
    max(chunk_end) AS end,
    sum(chunk_end - chunk_first) AS lengths,
    sum(folded) AS folded_sum,
    sum(duplicates) AS duplicates_sum,
    sum(dead) AS dead_sum,
    sum(marks) AS marks_sum,
    toUnixTimestamp64Milli(max(log_time)) AS log_time_ms,
    argMax(chain, chunk_end) AS last_chain
FROM {table:Identifier}
WHERE kafka_partition = {partition:Int32} AND kind = 'chunk' AND tenant_id = ''
GROUP BY log_month
ORDER BY log_month
