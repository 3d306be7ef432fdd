-- Admits candidates for one coupon, in the order given.
--
-- KEYS: holders, pending, revoked (see redis_keys.py). ARGV: the coupon's total, the seconds after which the gate
-- expires unless it admits a request, then each candidate's user id and request id.
-- Returns nil if the gate is not loaded, else two numbers per candidate: its outcome and its sequence (0: none).
local ADMITTED, REPEAT, DUPLICATE, SOLD_OUT = 1, 2, 3, 4

local function natural(text)
    return #text <= 15 and string.match(text, '^%d+$') and tonumber(text)
end

local users = {}
for i = 3, #ARGV, 2 do
    users[#users + 1] = ARGV[i]
end
-- If a key is missing or of another type, the gate counts as not loaded; loading it repairs it.
local sequence = redis.pcall('HGET', KEYS[1], 'sequence')
local sentinel = redis.pcall('ZSCORE', KEYS[2], '-')
local revoked = redis.pcall('SMISMEMBER', KEYS[3], '-', unpack(users))
if type(sequence) ~= 'string' or not tonumber(sequence) or type(sentinel) ~= 'string' or revoked[1] ~= 1 then
    return false
end

local entries = redis.call('HMGET', KEYS[1], unpack(users))
local count = redis.call('HLEN', KEYS[1]) - 1
local free = tonumber(ARGV[1]) - count
-- An infinite, negative or too large value (a Lua number holds 15 digits exactly) is corrected by the reconciler. Until
-- then the sequence continues from the number of holders, as after loading.
sequence = natural(sequence) or count
local time = redis.call('TIME')
local now = time[1] .. string.format('%03d', math.floor(time[2] / 1000))

local outcomes, new_entries, new_pending, new_by_user = {}, {}, {}, {}
for i, user in ipairs(users) do
    local request = ARGV[2 * i + 2]
    local entry = new_by_user[user] or entries[i]
    local outcome, assigned = SOLD_OUT, 0
    if entry then
        outcome = DUPLICATE
        if string.sub(entry, 1, 36) == request then
            outcome, assigned = REPEAT, natural(string.sub(entry, 38)) or 0
        end
    elseif revoked[i + 1] == 1 then
        outcome = DUPLICATE
    elseif free > 0 then
        free = free - 1
        sequence = sequence + 1
        outcome, assigned = ADMITTED, sequence
        entry = string.format('%s:%.0f', request, sequence)
        new_by_user[user] = entry
        new_entries[#new_entries + 1] = user
        new_entries[#new_entries + 1] = entry
        new_pending[#new_pending + 1] = now
        new_pending[#new_pending + 1] = user
    end
    outcomes[#outcomes + 1] = outcome
    outcomes[#outcomes + 1] = assigned
end
if #new_entries > 0 then
    redis.call('HSET', KEYS[1], 'sequence', string.format('%.0f', sequence), unpack(new_entries))
    redis.call('ZADD', KEYS[2], unpack(new_pending))
    -- All keys expire at the same moment; otherwise part of a gate would remain.
    local expires_at = string.format('%.0f', tonumber(now) + 1000 * ARGV[2])
    for _, key in ipairs(KEYS) do
        redis.call('PEXPIREAT', key, expires_at)
    end
end
return outcomes
