-- Mends single entries of a gate, each only if it is still as it was when somebody looked.
--
-- KEYS: takers, open, revoked. ARGV: the kind of the change, then for each its arguments. Returns how many were made.
if redis.call('HEXISTS', KEYS[1], 'sequence') == 0 then
    return 0
end
local kind, made = ARGV[1], 0
if kind == 'remove' then
    -- user, the entry as it was
    for i = 2, #ARGV, 2 do
        if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then
            redis.call('HDEL', KEYS[1], ARGV[i])
            redis.call('ZREM', KEYS[2], ARGV[i])
            made = made + 1
        end
    end
elseif kind == 'close' then
    -- user: open without an entry
    for i = 2, #ARGV do
        if redis.call('HEXISTS', KEYS[1], ARGV[i]) == 0 then
            made = made + redis.call('ZREM', KEYS[2], ARGV[i])
        end
    end
elseif kind == 'add' then
    -- user, entry, time of the reservation in ms (empty: not open)
    for i = 2, #ARGV, 3 do
        if redis.call('HSETNX', KEYS[1], ARGV[i], ARGV[i + 1]) == 1 then
            if ARGV[i + 2] ~= '' then
                redis.call('ZADD', KEYS[2], ARGV[i + 2], ARGV[i])
            end
            made = made + 1
        end
    end
elseif kind == 'sequence' then
    -- the least that it can be
    local text = redis.call('HGET', KEYS[1], 'sequence')
    if not string.match(text, '^%d+$') or #text > 15 or tonumber(text) < tonumber(ARGV[2]) then
        redis.call('HSET', KEYS[1], 'sequence', ARGV[2])
        made = 1
    end
end
return made
