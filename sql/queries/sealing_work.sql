-- Sealings of a table that ClickHouse has not finished: which rows they look up, and why it could not go on if it could not.
SELECT
    extract(command, 'sealing_[0-9a-f]{32}') AS sealing,
    any(mutation_id) AS id,
    sum(parts_to_do) AS parts,
    any(latest_fail_reason) AS fault
FROM system.mutations
WHERE database = currentDatabase() AND table = {table:String} AND NOT is_done AND sealing != ''
GROUP BY sealing
