-- Activates a gate that was built under staging keys, if the builder's lock is still held.
--
-- KEYS: lock; holders, pending and revoked as built; the gate's holders, pending and revoked. ARGV: the lock's token,
-- the seconds after which the gate expires unless it admits a request.
-- Returns 1 if the gate was activated, 0 if the lock was lost.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
-- Users who were revoked while there was no gate. A set with the sentinel is a leftover of an earlier gate: the new
-- gate has its users already.
local revoked = redis.pcall('SMEMBERS', KEYS[7])
if revoked.err or redis.call('SISMEMBER', KEYS[7], '-') == 1 then
    revoked = {}
end
for _, user in ipairs(revoked) do
    redis.call('HDEL', KEYS[2], user)
    redis.call('ZREM', KEYS[3], user)
    redis.call('SADD', KEYS[4], user)
end
redis.call('ZADD', KEYS[3], 'inf', '-')
redis.call('SADD', KEYS[4], '-')
redis.call('UNLINK', KEYS[5], KEYS[6], KEYS[7])
local time = redis.call('TIME')
local expires_at = string.format('%.0f', 1000 * (time[1] + ARGV[2]))
for i = 2, 4 do
    redis.call('RENAME', KEYS[i], KEYS[i + 3])
    redis.call('PEXPIREAT', KEYS[i + 3], expires_at)
end
return 1
