-- What the balances of one partition begin with.
SELECT
    tenant_id, model, slot,
    sum(input) AS input_tokens,
    sum(cached_input) AS cached_input_tokens,
    sum(output) AS output_tokens,
    sum(reasoning) AS reasoning_tokens,
    sum(requests) AS request_count
FROM tokens
WHERE kafka_partition = {partition:Int32} AND kind = 'data' AND slot >= {from:Int64}
GROUP BY tenant_id, model, slot
ORDER BY tenant_id, model, slot
