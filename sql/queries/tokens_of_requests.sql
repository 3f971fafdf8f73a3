-- The tokens of a few requests of one tenant, which occurred between two instants.
SELECT
    request_id,
    sum(input) AS input_tokens,
    sum(cached_input) AS cached_input_tokens,
    sum(output) AS output_tokens,
    sum(reasoning) AS reasoning_tokens
FROM tokens
WHERE tenant_id = {tenant:String}
  AND kind = 'data'
  AND occurred_at >= fromUnixTimestamp64Micro({from:Int64}, 'UTC')
  AND occurred_at <= fromUnixTimestamp64Micro({to:Int64}, 'UTC')
  AND request_id IN {request_ids:Array(UUID)}
GROUP BY request_id
