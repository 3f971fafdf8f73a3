-- What a partition of a table takes: parts, rows, and bytes with those of its sums.
SELECT count() AS parts, sum(rows) AS row_count, sum(bytes_on_disk) AS bytes
FROM system.parts
WHERE database = currentDatabase() AND table = {table:String} AND active AND partition = {partition:String}
