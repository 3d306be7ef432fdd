-- What the gate knows of users, at one moment.
--
-- KEYS: takers, open. ARGV: user ids. Returns the time in ms, and for each user the entry (nil: none) and the time of
-- the reservation in ms (nil: not open).
local time = redis.call('TIME')
local looked = {time[1] .. string.format('%03d', math.floor(time[2] / 1000))}
for _, user in ipairs(ARGV) do
    looked[#looked + 1] = redis.call('HGET', KEYS[1], user)
    looked[#looked + 1] = redis.call('ZSCORE', KEYS[2], user)
end
return looked
