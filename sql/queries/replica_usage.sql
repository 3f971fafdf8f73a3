-- Tokens of one engine's requests that were there at any moment of a span, and of those whose whole life lies in it; of requests that
-- ended at `ended_from` or after. Of those that ended so long before its end that it makes no difference when it ends, apart too.
WITH
    asked AS
    (
        SELECT
            request_id, dispatched_at,
            toUnixTimestamp64Micro(occurred_at) < {surely_to:Int64} AS ended,
            ended AND toUnixTimestamp64Micro(dispatched_at) >= {surely_from:Int64} AS whole,
            end_reason != 'complete' OR attempts > 1 AS cut
        FROM requests
        WHERE kind = 'data' AND replica IN {replicas:Array(String)}
          AND log_month >= {month_from:UInt32}
          AND occurred_at >= fromUnixTimestamp64Micro({ended_from:Int64})
          AND dispatched_at < fromUnixTimestamp64Micro({maybe_to:Int64})
    ),
    counted AS
    (
        SELECT request_id, sum(input + cached_input) AS prompt, sum(output + reasoning) AS generation, max(estimated) AS estimated
        FROM tokens
        WHERE kind = 'data' AND replica IN {replicas:Array(String)}
          AND log_month >= {month_from:UInt32}
          -- No count is so much older than its request.
          AND occurred_at >= (SELECT min(dispatched_at) FROM asked) - INTERVAL 2 HOUR
          AND request_id IN (SELECT request_id FROM asked)
        GROUP BY request_id
    )
SELECT
    sumIf(prompt, whole AND NOT estimated) AS sure_prompt,
    sumIf(generation, whole AND NOT estimated) AS sure_generation,
    sum(prompt) AS maybe_prompt,
    sum(generation) AS maybe_generation,
    countIf(whole) AS requests,
    countIf(cut) AS cuts,
    countIf(estimated) AS estimates,
    sumIf(prompt, ended) AS ended_prompt,
    sumIf(generation, ended) AS ended_generation,
    countIf(cut AND ended) AS ended_cuts,
    countIf(estimated AND ended) AS ended_estimates
FROM asked LEFT JOIN counted USING (request_id)
