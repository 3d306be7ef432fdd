-- Puts a gate in its place that was built beside it, if the lock of whoever built it still holds.
--
-- KEYS: lock, then takers, open and revoked as built, then the same as they shall be. ARGV: the lock's token, the
-- seconds that the gate stays without anybody let in.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
-- Who was revoked meanwhile was told to a gate that was not there. What is left of an earlier gate is in the new one.
local told = redis.pcall('SMEMBERS', KEYS[7])
if told.err or redis.call('SISMEMBER', KEYS[7], '-') == 1 then
    told = {}
end
for _, user in ipairs(told) do
    redis.call('HDEL', KEYS[2], user)
    redis.call('ZREM', KEYS[3], user)
    redis.call('SADD', KEYS[4], user)
end
redis.call('ZADD', KEYS[3], 'inf', '-')
redis.call('SADD', KEYS[4], '-')
redis.call('UNLINK', KEYS[5], KEYS[6], KEYS[7])
local time = redis.call('TIME')
local ends = string.format('%.0f', 1000 * (time[1] + ARGV[2]))
for i = 2, 4 do
    redis.call('RENAME', KEYS[i], KEYS[i + 3])
    redis.call('PEXPIREAT', KEYS[i + 3], ends)
end
return 1
