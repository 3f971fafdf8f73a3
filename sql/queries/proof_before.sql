-- Where a line stood before a month: what a proof says, of the months before, out of the rows.
SELECT
    toUnixTimestamp64Milli(now64(3)) AS now_ms,
    groupArray((
        kind, source, rows, first, end, lengths, squares, folded, duplicates, dead, marks, log_time_ms, chain, state
    )) AS groups
FROM
(
    SELECT
        kind,
        source,
        count() AS rows,
        min(chunk_first) AS first,
        max(chunk_end) AS end,
        sum(chunk_end - chunk_first) AS lengths,
        sum(chunk_end * chunk_end - chunk_first * chunk_first) AS squares,
        sum(folded) AS folded,
        sum(duplicates) AS duplicates,
        sum(dead) AS dead,
        sum(marks) AS marks,
        toUnixTimestamp64Milli(max(log_time)) AS log_time_ms,
        argMax(chain, chunk_end) AS chain,
        argMax((last_seq, watermark, source_end, next_source), chunk_first) AS state
    FROM {table:Identifier}
    WHERE kafka_partition = {partition:Int32} AND log_month < {month:UInt32}
    GROUP BY kind, source
)
