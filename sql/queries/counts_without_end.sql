-- Requests whose last count is there and whose end is not. No count of these hours lies before the offset `since`; ends are looked
-- for from the offset `other_since` on, so that those that were found nowhere are asked again, by name.
WITH
    counted AS
    (
        SELECT request_id, tenant_id, log_hour, source, occurred_at
        FROM tokens
        WHERE kafka_partition = {partition:Int32} AND kind = 'data' AND final
          AND log_hour >= {log_from:Int64} AND log_hour < {log_before:Int64}
          AND kafka_offset >= {since:Int64}
          AND (empty({request_ids:Array(UUID)}) OR (tenant_id IN {tenants:Array(String)} AND request_id IN {request_ids:Array(UUID)}))
    )
SELECT
    toString(tenant_id) AS tenant, request_id, log_hour AS hour, source, toUnixTimestamp64Micro(occurred_at) AS at
FROM counted
WHERE request_id NOT IN
(
    SELECT request_id
    FROM requests
    WHERE kafka_partition = {partition:Int32} AND kind = 'data'
      AND kafka_offset >= {other_since:Int64}
      AND (empty({tenants:Array(String)}) OR tenant_id IN {tenants:Array(String)})
      AND occurred_at >= (SELECT min(occurred_at) FROM counted) AND occurred_at <= (SELECT max(occurred_at) FROM counted)
)
ORDER BY tenant_id, request_id
LIMIT 1000
