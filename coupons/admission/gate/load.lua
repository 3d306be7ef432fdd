-- Adds users who have a coupon to a gate that is being built.
--
-- KEYS: takers. ARGV: the user ids in one text, separated by commas, since as many arguments would take the client
-- longer than all the rest.
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
