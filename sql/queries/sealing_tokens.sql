-- One row for all that agree in every key of the sums: the first of them stays. A row that was sealed before says what it stands for.
INSERT INTO {sealing:Identifier}
    (row_kind, row_offset, row_source, stands_for, input, cached_input, output, reasoning, requests, attempts)
SELECT
    1, min(kafka_offset), toUUID('00000000-0000-0000-0000-000000000000'), toUInt64(count() + sum(folded)),
    sum(input), sum(cached_input), sum(output), sum(reasoning), sum(requests), 0
FROM tokens
WHERE kafka_partition = {partition:Int32} AND log_month = {month:UInt32} AND kind = 'data'
GROUP BY tenant_id, slot, project_id, api_key_id, model, version, endpoint, replica, log_hour
