-- Where the chunks of a line do not follow each other: something is missing before, or is there twice.
SELECT expected, chunk_first, hour
FROM
(
    SELECT
        chunk_first,
        log_hour AS hour,
        max(chunk_end) OVER (ORDER BY chunk_first, chunk_end ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS expected
    FROM {table:Identifier}
    WHERE kafka_partition = {partition:Int32} AND kind = 'chunk' AND tenant_id = ''
)
WHERE chunk_first != expected
ORDER BY chunk_first
LIMIT 100
