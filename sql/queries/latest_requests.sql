-- A tenant's requests, the latest first, from where the page before ended. Those of sealed months are no rows of their own.
SELECT
    kafka_offset AS offset, occurred_at, request_id, attempts, project_id, api_key_id, model, version, replica, endpoint,
    stream, status, end_reason, error_code, received_at, dispatched_at, first_byte_at
FROM requests
WHERE tenant_id = {tenant:String}
  AND kind = 'data' AND chunk_end = 0
  AND occurred_at <= fromUnixTimestamp64Micro({before:Int64}, 'UTC')
  AND (occurred_at < fromUnixTimestamp64Micro({before:Int64}, 'UTC') OR kafka_offset < {before_offset:Int64})
ORDER BY tenant_id DESC, occurred_at DESC, kafka_offset DESC
LIMIT {limit:UInt64}
