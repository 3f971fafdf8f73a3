-- What else stays: every dead letter, the last row of each source, and the first chunk's own row, which then stands for all of them.
INSERT INTO {sealing:Identifier} (row_kind, row_offset, row_source, stands_for)
SELECT
    CAST(kind, 'Int8'),
    multiIf(kind = 'source', max(kafka_offset), min(kafka_offset)),
    if(kind = 'source', source, toUUID('00000000-0000-0000-0000-000000000000')) AS whose,
    1
FROM {table:Identifier}
WHERE kafka_partition = {partition:Int32} AND log_month = {month:UInt32} AND kind != 'data' AND tenant_id = ''
GROUP BY kind, whose, if(kind = 'dead', kafka_offset, 0)
