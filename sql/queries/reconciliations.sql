-- The last runs of the reconciler, the latest first; the report of the latest one alone.
SELECT
    toUnixTimestamp64Milli(at) AS at_ms,
    from_hour, before_hour, duration_ms, differences, pending,
    if(row_number() OVER (ORDER BY at DESC) = 1, report, '') AS latest
FROM reconciliations
ORDER BY at DESC
LIMIT {limit:UInt64}
