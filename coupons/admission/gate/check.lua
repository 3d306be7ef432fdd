-- Checks whether a gate is complete: each key has its type and the sentinel that loading writes.
--
-- KEYS: holders, pending, revoked. ARGV: 1 to drop a partial gate, 0 to only check. Returns 0 if there is no gate, 1 if
-- it is complete, 2 if it is partial.
local types = {}
for i, key in ipairs(KEYS) do
    types[i] = redis.call('TYPE', key).ok
end
if types[1] == 'hash' and types[2] == 'zset' and types[3] == 'set'
    and tonumber(redis.call('HGET', KEYS[1], 'sequence') or '')
    and redis.call('ZSCORE', KEYS[2], '-')
    and redis.call('SISMEMBER', KEYS[3], '-') == 1 then
    return 1
end
-- revoke.lua writes the revoked set even while no gate is loaded.
if types[1] == 'none' and types[2] == 'none' and (types[3] == 'none' or types[3] == 'set') then
    return 0
end
if ARGV[1] == '1' then
    redis.call('UNLINK', unpack(KEYS))
end
return 2
