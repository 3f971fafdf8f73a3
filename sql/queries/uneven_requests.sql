-- Requests that were counted in some hours of the log, whose counts do not add up to their last running count. Those with
-- rows in an hour before are among them: they are asked again, by name.
-- No row of those hours lies before the offset `since`.
SELECT
    toString(tenant_id) AS tenant, request_id,
    max(log_hour) AS hour,
    sum(input) AS input_tokens,
    sum(cached_input) AS cached_input_tokens,
    sum(output) AS output_tokens,
    sum(reasoning) AS reasoning_tokens,
    max(input_cumulative) AS input_last,
    max(cached_input_cumulative) AS cached_input_last,
    max(output_cumulative) AS output_last,
    max(reasoning_cumulative) AS reasoning_last
FROM tokens
WHERE kafka_partition = {partition:Int32} AND kind = 'data' AND chunk_end = 0
  AND kafka_offset >= {since:Int64}
  AND log_hour >= {log_from:Int64} AND log_hour < {log_before:Int64}
  AND (empty({request_ids:Array(UUID)}) OR (tenant_id IN {tenants:Array(String)} AND request_id IN {request_ids:Array(UUID)}))
GROUP BY tenant_id, request_id
HAVING input_tokens != input_last OR cached_input_tokens != cached_input_last
    OR output_tokens != output_last OR reasoning_tokens != reasoning_last
ORDER BY tenant_id, request_id
LIMIT 1000
