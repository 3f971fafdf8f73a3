-- Usage by any choice of keys, and by spans of time whose first slots are given: the calendar is not ClickHouse's affair.
SELECT
    if({by_tenant:Bool}, toString(tenant_id), '') AS tenant,
    if({by_project:Bool}, toString(project_id), '') AS project,
    if({by_key:Bool}, api_key_id, toUUID('00000000-0000-0000-0000-000000000000')) AS api_key,
    if({by_model:Bool}, toString(model), '') AS model_name,
    if({by_version:Bool}, toString(version), '') AS model_version,
    if({by_endpoint:Bool}, toString(endpoint), '') AS path,
    if({by_span:Bool}, roundDown(slot, {spans:Array(Int64)}), 0) AS span,
    toBool({by_late:Bool} AND log_hour >= transform(
        roundDown(slot, {periods:Array(Int64)}), {periods:Array(Int64)}, {late_from:Array(Int64)}, toInt64(0))) AS late,
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
GROUP BY tenant, project, api_key, model_name, model_version, path, span, late
ORDER BY span, tenant, project, api_key, model_name, model_version, path, late
