-- Tables of rows to look up that a process left behind when it was killed, a day ago or longer, and that no sealing needs any more.
SELECT name
FROM system.tables
WHERE database = currentDatabase()
  AND engine = 'Join'
  AND match(name, '^sealing_[0-9a-f]{32}$')
  AND metadata_modification_time < now() - INTERVAL 1 DAY
  AND name NOT IN
  (
      SELECT extract(command, 'sealing_[0-9a-f]{32}')
      FROM system.mutations
      WHERE database = currentDatabase() AND NOT is_done
  )
