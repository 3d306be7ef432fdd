-- Adds users who have the coupon to a gate that is being built.
--
-- KEYS: holders. ARGV: the user ids as one comma-separated string: encoding them as separate arguments would take the
-- client longer than the rest of the call.
local fields = {}
for user in string.gmatch(ARGV[1], '[^,]+') do
    fields[#fields + 1] = user
    fields[#fields + 1] = '-'
    if #fields == 2000 then
        redis.call('HSET', KEYS[1], unpack(fields))
        fields = {}
    end
end
if #fields > 0 then
    redis.call('HSET', KEYS[1], unpack(fields))
end
