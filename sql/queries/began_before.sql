-- Which of some requests of a partition had begun before an instant.
SELECT request_id
FROM requests
WHERE kafka_partition = {partition:Int32} AND kind = 'data'
  AND request_id IN {request_ids:Array(UUID)}
  AND received_at < fromUnixTimestamp64Micro({before:Int64}, 'UTC')
