-- The last slot in which each of a tenant's keys was used.
SELECT api_key_id, max(slot) AS last_slot
FROM
(
    SELECT api_key_id, slot
    FROM tokens
    WHERE kind = 'data' AND tenant_id = {tenant:String}
    GROUP BY api_key_id, slot
)
GROUP BY api_key_id
ORDER BY api_key_id
