-- What balances must say: usage of some tenants in one period, of the hours of the log before one. All of it lies before the offsets
-- that the balances are of.
SELECT
    toString(tenant_id) AS tenant, model,
    sum(input) AS input_tokens,
    sum(cached_input) AS cached_input_tokens,
    sum(output) AS output_tokens,
    sum(reasoning) AS reasoning_tokens,
    sum(requests) AS request_count
FROM tokens
WHERE kafka_partition = {partition:Int32} AND kind = 'data'
  AND tenant_id IN {tenants:Array(String)}
  AND slot >= {from:Int64} AND slot < {to:Int64}
  AND log_hour < {hour:Int64}
GROUP BY tenant_id, model
ORDER BY tenant_id, model
