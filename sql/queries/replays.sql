-- The first record of each of these sources, which are those of replays: what became of it, and where. Of one that counted in a month which
-- is sealed, only the source's own row is left.
SELECT source, min((kind = 'source', kafka_partition, kafka_offset, toInt8(kind))) AS first
FROM {table:Identifier}
WHERE source IN {sources:Array(UUID)} AND kind IN ('data', 'dead', 'source')
GROUP BY source
