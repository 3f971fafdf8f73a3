-- The dead letters of a month's part, and one number for them and for where its sources end: sealed or not, both are the same.
SELECT
    countIf(what = 'dead') AS dead_rows,
    groupBitXor(cityHash64(toString(what), whose, place, state, letter)) AS digest
FROM
(
    SELECT
        kind AS what, source AS whose, if(kind = 'dead', kafka_offset, 0) AS place,
        argMax((last_seq, watermark, CAST(source_end, 'Int8'), next_source), kafka_offset) AS state,
        any((dead_reason, dead_detail, ifNull(dead_key, ''), ifNull(dead_value, ''), seq, event_id)) AS letter
    FROM {table:Identifier}
    WHERE kafka_partition = {partition:Int32} AND log_month = {month:UInt32} AND kind IN ('dead', 'source') AND tenant_id = ''
    GROUP BY what, whose, place
)
