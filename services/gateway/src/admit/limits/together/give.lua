-- Gives back requests and tokens, or takes what was used beyond (less than 0), without asking whether there is room; and
-- counts a gateway's open requests up or down.
-- KEYS: the leases; then each level's rates and open requests.
-- ARGV: this gateway; then of each level its limits of requests and tokens per minute ('' for none), and the change of
-- requests, of tokens, and of open requests.
for level = 1, (#KEYS - 1) / 2 do
    local rates, open = KEYS[2 * level], KEYS[2 * level + 1]
    for at, name in ipairs({ 'r', 't' }) do
        local limit, change = ARGV[5 * level - 4 + at], tonumber(ARGV[5 * level - 2 + at])
        if change ~= 0 then
            local held, of = read(rates, name, limit)
            if held then
                write(rates, name, math.min(held + change * UNIT, of * UNIT), of)
            end
        end
    end
    local change = tonumber(ARGV[5 * level + 1])
    if change ~= 0 then
        -- It may be below 0 for a moment, when what was taken last is told last.
        if redis.call('HINCRBY', open, ARGV[1], whole(change)) == 0 then
            redis.call('HDEL', open, ARGV[1])
        else
            redis.call('PEXPIRE', open, 2 * DAY)
        end
    end
end
return 0
