-- Drops what is no whole gate: without its sequence, or with keys of another kind.
--
-- KEYS: takers, open, revoked. ARGV: 1 to drop it, 0 to only look. Returns 1 if it is not whole.
local kinds, is_whole = {'hash', 'zset', 'set'}, true
local found = {}
for i, key in ipairs(KEYS) do
    found[i] = redis.call('TYPE', key).ok
    is_whole = is_whole and (found[i] == 'none' or found[i] == kinds[i])
end
if is_whole and found[1] == 'hash' then
    is_whole = redis.call('HEXISTS', KEYS[1], 'sequence') == 1
elseif is_whole then
    -- Who was revoked may be told to a gate that is not there.
    is_whole = found[2] == 'none'
end
if is_whole then
    return 0
end
if ARGV[1] == '1' then
    redis.call('UNLINK', unpack(KEYS))
end
return 1
