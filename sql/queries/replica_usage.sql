-- Tokens of one engine's requests that were there at any moment of a span, and of those whose whole life lies in it.
WITH
    asked AS
    (
        SELECT
            request_id,
            toUnixTimestamp64Micro(dispatched_at) >= {surely_from:Int64} AND toUnixTimestamp64Micro(occurred_at) < {surely_to:Int64} AS whole,
            end_reason != 'complete' OR attempts > 1 AS cut
        FROM requests
        WHERE kind = 'data' AND replica IN {replicas:Array(String)}
          AND log_month >= {month_from:UInt32}
          AND occurred_at >= fromUnixTimestamp64Micro({maybe_from:Int64})
          AND dispatched_at < fromUnixTimestamp64Micro({maybe_to:Int64})
    ),
    counted AS
    (
        SELECT request_id, sum(input + cached_input) AS prompt, sum(output + reasoning) AS generation, max(estimated) AS estimated
        FROM tokens
        WHERE kind = 'data' AND replica IN {replicas:Array(String)}
          AND log_month >= {month_from:UInt32}
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
    countIf(estimated) AS estimates
FROM asked LEFT JOIN counted USING (request_id)
