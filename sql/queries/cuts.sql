-- The chunks of a line as they were cut, by their first offset.
SELECT chunk_first, chunk_end
FROM {table:Identifier}
WHERE kafka_partition = {partition:Int32} AND kind = 'chunk' AND chunk_first >= {from:Int64}
ORDER BY chunk_first, chunk_end
