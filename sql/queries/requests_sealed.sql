-- The last slot of a tenant's requests that are sealed.
SELECT max(slot) AS last_slot, count() AS row_count
FROM requests
WHERE tenant_id = {tenant:String} AND kind = 'data' AND chunk_end > 0
