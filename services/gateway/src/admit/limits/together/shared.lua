-- What take.lua and give.lua share; it stands before each of them.
-- A level is two keys. Its rates: of requests (r) and of tokens (t) the level of a bucket in thousandths of a minute's
-- worth of one (it may be a debt), since when, and under which limit; absent while full. And its open requests, by gateway:
-- they count as long as the gateway's lease, a score in KEYS[1], has not ended. The clock is that of Redis.
local UNIT = 60000
local DAY = 86400000
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function whole(number)
    return string.format('%.0f', number)
end

-- The bucket's level now and its limit; `limit` is '' when control has taken the limit away.
local function read(key, name, limit)
    local kept = redis.call('HMGET', key, name, name .. 'at', name .. 'of')
    if not kept[1] then
        return limit ~= '' and limit * UNIT or nil, tonumber(limit)
    end
    local of = tonumber(kept[3])
    local level = math.min(kept[1] + math.max(now - kept[2], 0) * of, of * UNIT)
    if limit == '' then
        return level, of
    end
    return level + (limit - of) * UNIT, tonumber(limit)
end

-- Keeps a level until it is full again: then its key says no more than none.
local function write(key, name, level, limit)
    redis.call('HSET', key, name, whole(level), name .. 'at', whole(now), name .. 'of', whole(limit))
    local full = limit > 0 and (limit * UNIT - level) / limit or UNIT
    if redis.call('PTTL', key) < full + 1000 then
        redis.call('PEXPIRE', key, whole(math.ceil(full) + 1000))
    end
end
