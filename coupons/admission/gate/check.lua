-- Tells whether there is a whole gate: keys of their kinds, each with the mark of one that was loaded.
--
-- KEYS: takers, open, revoked. ARGV: 1 to drop half a gate, 0 to only look. Returns 0 if there is none, 1 if it is
-- whole, 2 if there is half of one.
local found = {}
for i, key in ipairs(KEYS) do
    found[i] = redis.call('TYPE', key).ok
end
if found[1] == 'hash' and found[2] == 'zset' and found[3] == 'set'
    and tonumber(redis.call('HGET', KEYS[1], 'sequence') or '')
    and redis.call('ZSCORE', KEYS[2], '-')
    and redis.call('SISMEMBER', KEYS[3], '-') == 1 then
    return 1
end
-- Who was revoked may be told to a gate that is not there.
if found[1] == 'none' and found[2] == 'none' and (found[3] == 'none' or found[3] == 'set') then
    return 0
end
if ARGV[1] == '1' then
    redis.call('UNLINK', unpack(KEYS))
end
return 2
