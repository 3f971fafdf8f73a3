-- The rest of it: the rows from that hour on, of each tenant up to the offset that its balance is of.
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
  AND log_hour >= {hour:Int64}
  AND kafka_offset >= {since:Int64} AND kafka_offset < {until:Int64}
  AND kafka_offset < transform(toString(tenant_id), {tenants:Array(String)}, {offsets:Array(Int64)}, toInt64(0))
GROUP BY tenant_id, model
ORDER BY tenant_id, model
