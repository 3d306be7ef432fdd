-- Applies the results of requests for one coupon; idempotent.
--
-- KEYS: holders, pending, revoked (see redis_keys.py). ARGV: each request's user id, id and reason, empty for success.
-- Returns the number of reservations released, and 1 if the gate was dropped. Does nothing if the gate is not loaded.
if redis.call('HEXISTS', KEYS[1], 'sequence') == 0 then
    return {0, 0}
end
local released, over_admitted = 0, false
for i = 1, #ARGV, 3 do
    local user, request, reason = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    local entry = redis.call('HGET', KEYS[1], user)
    local is_own = entry and string.sub(entry, 1, 36) == request
    if reason == '' then
        -- The unit is issued, whatever admission admitted the request; unless it has returned to the stock since.
        if not is_own and redis.call('SISMEMBER', KEYS[3], user) == 0 then
            redis.call('HSET', KEYS[1], user, '-')
        end
        redis.call('ZREM', KEYS[2], user)
    elseif is_own and reason == 'ALREADY_ISSUED' then
        -- The user has the coupon by another request and remains a holder.
        redis.call('ZREM', KEYS[2], user)
    elseif is_own then
        redis.call('HDEL', KEYS[1], user)
        redis.call('ZREM', KEYS[2], user)
        released = released + 1
        -- Sequence 0: an earlier gate admitted it, and this gate counted it when it was loaded.
        over_admitted = over_admitted or (reason == 'SOLD_OUT' and string.sub(entry, 38) ~= '0')
    end
end
if over_admitted then
    -- The gate admitted more than the stock, so a holder is missing from it. The next request loads it again.
    -- UNLINK, since DEL blocks Redis for a second to free a million entries.
    redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3])
    return {released, 1}
end
return {released, 0}
