-- The next offset of a line, how many offsets its chunks hold, and the clock that the next deadline is counted from.
SELECT
    max(chunk_end) AS position,
    sum(chunk_end - chunk_first) AS offsets,
    toUnixTimestamp64Milli(now64(3)) AS now_ms
FROM {table:Identifier}
WHERE kafka_partition = {partition:Int32} AND kind = 'chunk'
