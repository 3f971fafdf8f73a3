-- Requests whose end is there and whose last count is not. Rows of sealed months, which have an end of a chunk, are of no request.
WITH
    ended AS
    (
        SELECT request_id, tenant_id, log_hour, source, occurred_at
        FROM requests
        WHERE kafka_partition = {partition:Int32} AND kind = 'data' AND chunk_end = 0
          AND log_hour >= {log_from:Int64} AND log_hour < {log_before:Int64}
    )
SELECT
    toString(tenant_id) AS tenant, request_id, log_hour AS hour, source, toUnixTimestamp64Micro(occurred_at) AS at
FROM ended
WHERE request_id NOT IN
(
    SELECT request_id
    FROM tokens
    WHERE kafka_partition = {partition:Int32} AND kind = 'data' AND final
      AND occurred_at >= (SELECT min(occurred_at) FROM ended) AND occurred_at <= (SELECT max(occurred_at) FROM ended)
)
ORDER BY tenant_id, request_id
LIMIT 1000
