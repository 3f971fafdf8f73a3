-- One number for all figures of a month's part of the tokens table: sealed or not, it is the same.
SELECT
    toUInt64(sum(stand)) AS stands_for,
    count() AS groups,
    groupBitXor(cityHash64(
        tenant_id, slot, project_id, api_key_id, model, version, endpoint, replica, log_hour,
        stand, inputs, cached_inputs, outputs, reasonings, request_count)) AS digest
FROM
(
    SELECT
        tenant_id, slot, project_id, api_key_id, model, version, endpoint, replica, log_hour,
        count() + sum(folded) AS stand,
        sum(input) AS inputs, sum(cached_input) AS cached_inputs, sum(output) AS outputs, sum(reasoning) AS reasonings,
        sum(requests) AS request_count
    FROM tokens
    WHERE kafka_partition = {partition:Int32} AND log_month = {month:UInt32} AND kind = 'data'
    GROUP BY tenant_id, slot, project_id, api_key_id, model, version, endpoint, replica, log_hour
)
