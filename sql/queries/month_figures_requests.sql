-- One number for all figures of a month's part of the requests table: sealed or not, it is the same.
SELECT
    toUInt64(sum(stand)) AS stands_for,
    count() AS groups,
    groupBitXor(cityHash64(tenant_id, slot, model, endpoint, status, end_reason, log_hour, stand, tries)) AS digest
FROM
(
    SELECT
        tenant_id, slot, model, endpoint, status, end_reason, log_hour,
        count() + sum(folded) AS stand,
        sum(attempts) AS tries
    FROM requests
    WHERE kafka_partition = {partition:Int32} AND log_month = {month:UInt32} AND kind = 'data'
    GROUP BY tenant_id, slot, model, endpoint, status, end_reason, log_hour
)
