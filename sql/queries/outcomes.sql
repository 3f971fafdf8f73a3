-- What became of the offsets of each line, beside the rows that are there.
SELECT
    kafka_partition, kind,
    count() AS row_count,
    max(chunk_end) AS position,
    sum(folded) AS folded_sum,
    sum(duplicates) AS duplicates_sum,
    sum(dead) AS dead_sum,
    sum(marks) AS marks_sum
FROM {table:Identifier}
GROUP BY kafka_partition, kind
ORDER BY kafka_partition, kind
