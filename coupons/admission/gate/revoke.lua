-- Bars users whose pieces went back to the stock, and counts those no more.
--
-- KEYS: takers, open, revoked. ARGV: the seconds for which a gate that is not there is told, then user ids.
local is_loaded = redis.call('HEXISTS', KEYS[1], 'sequence') == 1
for i = 2, #ARGV do
    if is_loaded then
        redis.call('HDEL', KEYS[1], ARGV[i])
        redis.call('ZREM', KEYS[2], ARGV[i])
    end
    redis.call('SADD', KEYS[3], ARGV[i])
end
if not is_loaded then
    -- For somebody who is loading it and read before the piece went back.
    redis.call('EXPIRE', KEYS[3], ARGV[1])
end
