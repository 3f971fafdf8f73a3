-- Tokens per replica, model and hour in which they occurred.
SELECT
    replica, model, intDiv(slot, 4) AS hour,
    sum(input) AS input_tokens,
    sum(cached_input) AS cached_input_tokens,
    sum(output) AS output_tokens,
    sum(reasoning) AS reasoning_tokens,
    sum(requests) AS request_count
FROM tokens
WHERE kind = 'data' AND hour >= {from:Int64} AND hour < {to:Int64}
GROUP BY replica, model, hour
ORDER BY replica, model, hour
