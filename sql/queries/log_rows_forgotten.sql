-- Tables of the kind above that a process left behind when it was killed, a day ago or longer.
SELECT name
FROM system.tables
WHERE database = currentDatabase()
  AND engine = 'Memory'
  AND match(name, '^log_rows_[0-9a-f]{32}$')
  AND metadata_modification_time < now() - INTERVAL 1 DAY
