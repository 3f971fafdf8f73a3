-- Chunks that say other numbers of rows than there are; a sealed month is one chunk, whose rows stand for many. A chunk is one part, so that no chunk is ever seen half.
SELECT
    chunk_first,
    max(chunk_end) AS end,
    max(log_hour) AS hour,
    countIf(kind = 'chunk') AS chunks,
    sumIf(folded, kind = 'chunk') AS folded_said,
    sumIf(dead, kind = 'chunk') AS dead_said,
    toUInt64(countIf(kind = 'data') + sumIf(folded, kind = 'data')) AS data_rows,
    countIf(kind = 'dead') AS dead_rows,
    countIf(kind = 'chunk' AND seq > 0) AS sealed
FROM {table:Identifier}
WHERE kafka_partition = {partition:Int32}
  AND kafka_offset >= {first:Int64} AND kafka_offset < {end:Int64}
  AND chunk_first >= {first:Int64} AND chunk_first < {end:Int64}
GROUP BY chunk_first
HAVING chunks != 1 OR folded_said != toInt64(data_rows) OR dead_said != toInt64(dead_rows)
ORDER BY chunk_first
LIMIT 1000
