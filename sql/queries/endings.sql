-- How requests ended, by spans of time whose first slots are given.
SELECT
    roundDown(slot, {spans:Array(Int64)}) AS span, model, status, end_reason,
    toUInt64(count() + sum(folded)) AS request_count,
    sum(attempts) AS attempt_count
FROM requests
WHERE kind = 'data'
  AND ({tenant:String} = '' OR tenant_id = {tenant:String})
  AND slot >= {from:Int64} AND slot < {to:Int64}
GROUP BY span, model, status, end_reason
ORDER BY span, model, status, end_reason
