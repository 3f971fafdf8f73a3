-- Takes one request, and tokens, from every level of a claim, or from none.
-- KEYS: the leases; then each level's rates and open requests.
-- ARGV: this gateway; tokens; then of each level its requests per minute, tokens per minute and requests at once; '' for none.
-- Answers whether it took (1) or not (0), how many gateways have a lease, and of each level where its buckets and its
-- number of open requests are now.
local lease = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not lease or tonumber(lease) <= now then
    return redis.error_reply('LAPSED the lease of this gateway has ended')
end

local function open_in(key)
    local all, sum = redis.call('HGETALL', key), 0
    for at = 1, #all, 2 do
        local ends = redis.call('ZSCORE', KEYS[1], all[at])
        if ends and tonumber(ends) > now then
            sum = sum + all[at + 1]
        else
            redis.call('HDEL', key, all[at])
        end
    end
    return sum
end

local answer, fits = { 1, redis.call('ZCOUNT', KEYS[1], '(' .. whole(now), '+inf') }, true
local levels = (#KEYS - 1) / 2
for level = 1, levels do
    local rates, open = KEYS[2 * level], KEYS[2 * level + 1]
    local requests, tokens, most = ARGV[3 * level], ARGV[3 * level + 1], ARGV[3 * level + 2]
    local has, held, there = 0, 0, 0
    if requests ~= '' then
        has = read(rates, 'r', requests)
        fits = fits and has >= UNIT
    end
    if tokens ~= '' then
        held = read(rates, 't', tokens)
        fits = fits and held >= ARGV[2] * UNIT
    end
    if most ~= '' then
        there = open_in(open)
        fits = fits and there < tonumber(most)
    end
    answer[3 * level], answer[3 * level + 1], answer[3 * level + 2] = has, held, there
end
if not fits then
    answer[1] = 0
    return answer
end
for level = 1, levels do
    local rates, open = KEYS[2 * level], KEYS[2 * level + 1]
    local requests, tokens, most = ARGV[3 * level], ARGV[3 * level + 1], ARGV[3 * level + 2]
    if requests ~= '' then
        answer[3 * level] = answer[3 * level] - UNIT
        write(rates, 'r', answer[3 * level], tonumber(requests))
    end
    if tokens ~= '' then
        answer[3 * level + 1] = answer[3 * level + 1] - ARGV[2] * UNIT
        write(rates, 't', answer[3 * level + 1], tonumber(tokens))
    end
    if most ~= '' then
        redis.call('HINCRBY', open, ARGV[1], 1)
        redis.call('PEXPIRE', open, 2 * DAY)
        answer[3 * level + 2] = answer[3 * level + 2] + 1
    end
end
return answer
