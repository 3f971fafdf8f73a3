-- Renews this gateway's lease.
-- KEYS: the leases; the mark of what is kept here.
-- ARGV: this gateway; the lease in milliseconds; '1' if it is to be there already; a new mark.
-- Answers how many gateways have a lease, and the mark: another than before says that all was lost in between.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
if ARGV[3] == '1' and not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
    return redis.error_reply('LAPSED the lease of this gateway has ended')
end
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2]), ARGV[1])
redis.call('SET', KEYS[2], ARGV[4], 'NX')
return { redis.call('ZCARD', KEYS[1]), redis.call('GET', KEYS[2]) }
