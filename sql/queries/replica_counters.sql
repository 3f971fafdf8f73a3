-- What replicas counted themselves in some hours.
SELECT at, url, replicas, started, prompt_tokens, generation_tokens, open
FROM replica_counters
WHERE at >= fromUnixTimestamp64Milli({from_ms:Int64}) AND at < fromUnixTimestamp64Milli({before_ms:Int64})
ORDER BY url, at
