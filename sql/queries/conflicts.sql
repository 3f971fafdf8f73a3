-- What dead letters of some offsets say of the events that have their numbers: the words of the fold, as ids and a number.
SELECT
    arrayMap(id -> toUUID(id),
        extractAll(dead_detail, '[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}')) AS ids,
    toUInt64OrZero(extract(dead_detail, 'has number ([0-9]+) of')) AS number
FROM {table:Identifier}
WHERE kafka_partition = {partition:Int32} AND tenant_id = '' AND kind = 'dead' AND dead_reason = 'seq_conflict'
  AND kafka_offset >= {from:Int64} AND kafka_offset < {before:Int64}
