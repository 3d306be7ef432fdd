-- Takes note of how requests for one coupon ended; the same again changes nothing.
--
-- KEYS: takers, open, revoked (see gate.py). ARGV: each request's user id, id and reason, which is empty for success.
-- Returns how many reservations were released, and 1 if the gate was dropped. A gate that is not loaded stays so.
if redis.call('HEXISTS', KEYS[1], 'sequence') == 0 then
    return {0, 0}
end
local released, wrong = 0, false
for i = 1, #ARGV, 3 do
    local user, request, reason = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    local entry = redis.call('HGET', KEYS[1], user)
    local own = entry and string.sub(entry, 1, 36) == request
    if reason == '' then
        -- Whoever let it in: the piece is gone. Unless this is told so late that it has come back since.
        if not own and redis.call('SISMEMBER', KEYS[3], user) == 0 then
            redis.call('HSET', KEYS[1], user, '-')
        end
        redis.call('ZREM', KEYS[2], user)
    elseif own and reason == 'ALREADY_ISSUED' then
        -- The user has the coupon by another request and remains counted.
        redis.call('ZREM', KEYS[2], user)
    elseif own then
        redis.call('HDEL', KEYS[1], user)
        redis.call('ZREM', KEYS[2], user)
        released = released + 1
        -- One without a place was let in by a gate before this one, which counted it when it was loaded.
        wrong = wrong or (reason == 'SOLD_OUT' and string.sub(entry, 38) ~= '0')
    end
end
if wrong then
    -- It let in what there was no piece for, so it does not know of somebody who has one. The next request loads it.
    -- Not DEL: to free a million entries takes a second in which nobody is served.
    redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3])
    return {released, 1}
end
return {released, 0}
