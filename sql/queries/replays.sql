-- The first record of each of these sources, which are those of replays: what became of it, and where.
SELECT source, min((kafka_partition, kafka_offset, toInt8(kind))) AS first
FROM {table:Identifier}
WHERE source IN {sources:Array(UUID)} AND kind IN ('data', 'dead')
GROUP BY source
