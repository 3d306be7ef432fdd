-- Reads the entries of users in one snapshot.
--
-- KEYS: holders, pending. ARGV: user ids. Returns the time in ms, then for each user the entry (nil: none) and the time
-- of the reservation in ms (nil: not pending).
local time = redis.call('TIME')
local values = {time[1] .. string.format('%03d', math.floor(time[2] / 1000))}
for _, user in ipairs(ARGV) do
    values[#values + 1] = redis.call('HGET', KEYS[1], user)
    values[#values + 1] = redis.call('ZSCORE', KEYS[2], user)
end
return values
