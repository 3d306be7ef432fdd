-- Revokes users whose units returned to the stock: they are no longer holders and are not admitted again.
--
-- KEYS: holders, pending, revoked. ARGV: the seconds for which the revoked set is kept without a gate, then user ids.
local is_loaded = redis.call('HEXISTS', KEYS[1], 'sequence') == 1
for i = 2, #ARGV do
    if is_loaded then
        redis.call('HDEL', KEYS[1], ARGV[i])
        redis.call('ZREM', KEYS[2], ARGV[i])
    end
    redis.call('SADD', KEYS[3], ARGV[i])
end
if not is_loaded then
    -- For a process that is loading the gate and read PostgreSQL before the unit returned.
    redis.call('EXPIRE', KEYS[3], ARGV[1])
end
