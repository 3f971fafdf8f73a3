-- What is rated: usage per slot with all that a price or a line may depend on. Where `since` is 0 offsets are not looked at, and a
-- projection will do.
SELECT
    tenant_id, project_id, api_key_id, model, version, endpoint, slot,
    if({by_log_hour:Bool}, log_hour, 0) AS hour,
    sum(input) AS input_tokens,
    sum(cached_input) AS cached_input_tokens,
    sum(output) AS output_tokens,
    sum(reasoning) AS reasoning_tokens,
    sum(requests) AS request_count
FROM tokens
WHERE kind = 'data'
  AND ({tenant:String} = '' OR tenant_id = {tenant:String})
  AND slot >= {from:Int64} AND slot < {to:Int64}
  AND log_hour >= {log_from:Int64} AND log_hour < {log_before:Int64}
  AND ({since:Int64} <= 0 OR kafka_offset >= {since:Int64})
GROUP BY tenant_id, project_id, api_key_id, model, version, endpoint, slot, hour
ORDER BY tenant_id, project_id, api_key_id, model, version, endpoint, slot, hour
