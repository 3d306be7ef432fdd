-- Puts a gate in its place that was built beside it, if the lock of whoever built it still holds.
--
-- KEYS: lock, then takers, open and revoked as built, then the same as they shall be. ARGV: the lock's token.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
redis.call('UNLINK', KEYS[5], KEYS[6], KEYS[7])
for i = 2, 4 do
    if redis.call('EXISTS', KEYS[i]) == 1 then
        redis.call('RENAME', KEYS[i], KEYS[i + 3])
        redis.call('PERSIST', KEYS[i + 3])
    end
end
return 1
