-- Every row of a range of offsets of one line, in the months that the range lies in.
SELECT ?fields
FROM {table:Identifier}
WHERE kafka_partition = {partition:Int32}
  AND log_month >= {month_from:UInt32} AND log_month <= {month_to:UInt32}
  AND kafka_offset >= {from:Int64} AND kafka_offset < {before:Int64}
