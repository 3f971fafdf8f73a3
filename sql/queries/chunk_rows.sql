-- The events that the rows of one chunk hold.
SELECT kafka_offset, event_id, request_id, toString(tenant_id) AS tenant
FROM {table:Identifier}
WHERE kafka_partition = {partition:Int32} AND chunk_first = {first:Int64} AND kind = 'data'
ORDER BY kafka_offset
