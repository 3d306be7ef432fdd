-- Lets candidates for one coupon in, in the order given.
--
-- KEYS: takers, open, revoked (see gate_keys.py). ARGV: the coupon's total, the seconds that the gate stays without
-- anybody let in, then each candidate's user id and request id.
-- Returns nil if the gate is not loaded, else two numbers per candidate: what became of it, and its place in line.
local FRESH, REPEAT, DUPLICATE, SOLD_OUT = 1, 2, 3, 4

local function natural(text)
    return #text <= 15 and string.match(text, '^%d+$') and tonumber(text)
end

local users = {}
for i = 3, #ARGV, 2 do
    users[#users + 1] = ARGV[i]
end
-- A key that is missing or of another kind is a gate that is not loaded: then it is loaded, and right again.
local sequence = redis.pcall('HGET', KEYS[1], 'sequence')
local marked = redis.pcall('ZSCORE', KEYS[2], '-')
local revoked = redis.pcall('SMISMEMBER', KEYS[3], '-', unpack(users))
if type(sequence) ~= 'string' or not tonumber(sequence) or type(marked) ~= 'string' or revoked[1] ~= 1 then
    return false
end

local entries = redis.call('HMGET', KEYS[1], unpack(users))
local held = redis.call('HLEN', KEYS[1]) - 1
local free = tonumber(ARGV[1]) - held
-- Infinite, negative or past what a number of Lua holds: the reconciler sets it, until then as when the gate is loaded.
sequence = natural(sequence) or held
local time = redis.call('TIME')
local now = time[1] .. string.format('%03d', math.floor(time[2] / 1000))

local answers, taken, opened, here = {}, {}, {}, {}
for i, user in ipairs(users) do
    local request = ARGV[2 * i + 2]
    local entry = here[user] or entries[i]
    local answer, place = SOLD_OUT, 0
    if entry then
        answer = DUPLICATE
        if string.sub(entry, 1, 36) == request then
            answer, place = REPEAT, natural(string.sub(entry, 38)) or 0
        end
    elseif revoked[i + 1] == 1 then
        answer = DUPLICATE
    elseif free > 0 then
        free = free - 1
        sequence = sequence + 1
        answer, place = FRESH, sequence
        entry = string.format('%s:%.0f', request, sequence)
        here[user] = entry
        taken[#taken + 1] = user
        taken[#taken + 1] = entry
        opened[#opened + 1] = now
        opened[#opened + 1] = user
    end
    answers[#answers + 1] = answer
    answers[#answers + 1] = place
end
if #taken > 0 then
    redis.call('HSET', KEYS[1], 'sequence', string.format('%.0f', sequence), unpack(taken))
    redis.call('ZADD', KEYS[2], unpack(opened))
    -- All of them at one moment, or half a gate would be left.
    local ends = string.format('%.0f', tonumber(now) + 1000 * ARGV[2])
    for _, key in ipairs(KEYS) do
        redis.call('PEXPIREAT', key, ends)
    end
end
return answers
