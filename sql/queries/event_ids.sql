-- The ids of events by source and number, given as runs of numbers.
SELECT source, seq, event_id
FROM {table:Identifier}
WHERE kafka_partition = {partition:Int32}
  AND kind IN ('data', 'dead')
  AND source IN {sources:Array(UUID)}
  AND arrayExists(
      (run_source, run_first, run_last) -> source = run_source AND seq BETWEEN run_first AND run_last,
      {sources:Array(UUID)}, {firsts:Array(UInt64)}, {lasts:Array(UInt64)})
