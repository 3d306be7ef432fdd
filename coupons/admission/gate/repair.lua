-- Repairs single entries of a gate, each only if it has not changed since it was read.
--
-- KEYS: holders, pending, revoked. ARGV: the kind of repair, then the arguments of each repair.
-- Returns the number of repairs made.
if redis.call('HEXISTS', KEYS[1], 'sequence') == 0 then
    return 0
end
local kind, repaired = ARGV[1], 0
if kind == 'remove' then
    -- user, the entry that was read
    for i = 2, #ARGV, 2 do
        if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then
            redis.call('HDEL', KEYS[1], ARGV[i])
            redis.call('ZREM', KEYS[2], ARGV[i])
            repaired = repaired + 1
        end
    end
elseif kind == 'remove_pending' then
    -- user: pending without an entry
    for i = 2, #ARGV do
        if redis.call('HEXISTS', KEYS[1], ARGV[i]) == 0 then
            repaired = repaired + redis.call('ZREM', KEYS[2], ARGV[i])
        end
    end
elseif kind == 'add' then
    -- user, entry, time of the reservation in ms (empty: not pending)
    for i = 2, #ARGV, 3 do
        if redis.call('HSETNX', KEYS[1], ARGV[i], ARGV[i + 1]) == 1 then
            if ARGV[i + 2] ~= '' then
                redis.call('ZADD', KEYS[2], ARGV[i + 2], ARGV[i])
            end
            repaired = repaired + 1
        end
    end
elseif kind == 'sequence' then
    -- the lowest valid sequence
    local text = redis.call('HGET', KEYS[1], 'sequence')
    if not string.match(text, '^%d+$') or #text > 15 or tonumber(text) < tonumber(ARGV[2]) then
        redis.call('HSET', KEYS[1], 'sequence', ARGV[2])
        repaired = 1
    end
end
return repaired
