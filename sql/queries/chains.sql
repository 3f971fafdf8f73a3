-- The chain of a line at the end of each of its chunks.
SELECT chunk_end, chain
FROM {table:Identifier}
WHERE kafka_partition = {partition:Int32} AND kind = 'chunk' AND chunk_end > {from:Int64}
ORDER BY chunk_end
