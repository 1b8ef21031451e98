package gatewayredis

import (
	"crypto/sha1"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math"
)

// A script changes the state of one key in one atomic step. Its arguments are an operation, a number of units n, two
// parameters of the limit, and what the operation needs besides:
//
//	take n limit rate [most back ref]   takes n units if they are left, and up to most; gives back units before
//	give n limit rate ref               gives n units back
//	owe  n limit rate                   takes n units whatever is left
//
// It returns the state before the units were taken, the time, and the number of units taken, as doubles in a string.
// From these, Go calculates the Decision. So the script is short, and its answer has no lists to parse.
//
// A state of another type or length, or of numbers that are not finite, is replaced by that of a new key: nobody but this
// package writes these keys.
type script struct {
	source string
	sha    string
	fields int // doubles in the answer
}

func newScript(body string, fields int) *script {
	return makeScript(scriptClock+scriptHead+body, fields)
}

func makeScript(source string, fields int) *script {
	sum := sha1.Sum([]byte(source))
	return &script{source, hex.EncodeToString(sum[:]), fields}
}

// parse returns the doubles of an answer.
func (s *script) parse(answer any) (f [5]float64, err error) {
	text, ok := answer.(string)
	if !ok || len(text) != 8*s.fields {
		return f, errNonsense
	}
	for i := range s.fields {
		f[i] = math.Float64frombits(binary.LittleEndian.Uint64([]byte(text[8*i : 8*i+8])))
		if math.IsNaN(f[i]) || math.IsInf(f[i], 0) {
			return f, errNonsense
		}
	}
	if s.fields > 2 && (f[1] < 1 || f[1] > maxUnits || f[2] < 0 || f[2] > maxUnits) { // the time, and the units taken
		return f, errNonsense
	}
	return f, nil
}

var errNonsense = errors.New("gatewayredis: Redis gave an answer that no script of this package gives")

// maxUnits is the largest number of units that a double counts without an error, and so the largest cost and debt. The
// largest limit is half of it, so that a cost that is cut to maxUnits is above any limit.
const (
	maxUnits = 1 << 53
	maxLimit = 1 << 52
)

// scriptClock sets now to the time in microseconds. Tests replace it.
const scriptClock = `
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
`

// scriptHead reads the arguments and the state.
const scriptHead = `
local key, op, n, limit, rate = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local state = redis.pcall('GET', key)
if type(state) ~= 'string' then state = '' end
local function keep(value, ms)
	redis.call('SET', key, value, 'PX', string.format('%.0f', math.min(math.max(ms, 1), 8e12)))
end
local function drop()
	if state ~= '' then redis.call('DEL', key) end
end
`

// bucketScript keeps the number of tokens and its time. rate is in tokens a nanosecond. An unused ref is 0; a slot of a
// leaky bucket has the time at which its queue ends.
//
// When the clock goes back by less than a second, as when it is corrected, time stands still until it has caught up.
// When it goes back further, as after a failover to a server whose clock is wrong, time goes on from there. Neither
// makes tokens.
var bucketScript = newScript(`
local tokens, at, moved = limit, now, false
if #state == 16 then
	tokens, at = struct.unpack('<dd', state)
	if tokens - tokens ~= 0 or at - at ~= 0 then tokens, at = limit, now end
	if at > now then
		if at - now > 1000000 then at, moved = now, true else now = at end
	end
end
tokens = math.min(limit, tokens + (now - at) * 1000 * rate)
local function save(left)
	if left >= limit then return drop() end
	keep(struct.pack('<dd', left, now), math.ceil((limit - left) / rate / 1e6))
end
local before, taken = tokens, 0
if op == 'take' then
	local most, back = tonumber(ARGV[5] or n), tonumber(ARGV[6] or 0)
	if back > 0 then
		tokens = math.min(limit, tokens + back)
		before = tokens
	end
	if n <= limit and tokens - n > -rate then
		taken = math.max(n, math.min(most, math.floor(tokens)))
	end
	if taken > 0 or back > 0 or moved then save(tokens - taken) end
elseif op == 'give' then
	local ref = tonumber(ARGV[5])
	local fits = ref == 0 or math.abs(now + (limit - tokens) / rate / 1000 - ref) <= math.max(1, 0.0005 / rate)
	if fits then save(math.min(limit, tokens + n)) end
else
	save(math.max(tokens - n, -2^53))
end
return struct.pack('<ddd', before, now, taken)
`, 3)

// fixedScript keeps the start of the window and the units used. rate is the length of the window in microseconds.
//
// When the clock goes back, the window goes on, but not for longer than its length.
var fixedScript = newScript(`
local length = rate
local start, used, moved = now - now % length, 0, false
if #state == 16 then
	local s, u = struct.unpack('<dd', state)
	if s - s == 0 and u - u == 0 then
		used = math.max(0, u)
		if start > s then
			if used <= limit then used = 0 else used = math.max(0, used - (start - s) / length * limit) end
		elseif s - start <= length then
			start = s
		else
			moved = true
		end
	end
end
local function save(u)
	if u <= 0 then return drop() end
	keep(struct.pack('<dd', start, u), math.ceil((start + math.ceil(u / limit) * length - now) / 1000))
end
local before, taken = used, 0
if op == 'take' then
	local most, back = tonumber(ARGV[5] or n), tonumber(ARGV[6] or 0)
	if back > 0 and tonumber(ARGV[7]) == start then
		used = math.max(0, used - back)
		before = used
	else
		back = 0
	end
	if n <= limit - used then taken = math.max(n, math.min(most, limit - used)) end
	if taken > 0 or back > 0 or moved then save(used + taken) end
elseif op == 'give' then
	if start == tonumber(ARGV[5]) then save(math.max(0, used - n)) end
else
	save(math.min(2^53, used + n))
end
return struct.pack('<dddd', before, now, taken, start)
`, 4)

// slidingScript keeps the start of the window, its units, and those of the window before. rate is the length of the
// window in microseconds.
var slidingScript = newScript(`
local length = rate
local start, used, prev, moved = now - now % length, 0, 0, false
local function pass(windows)
	local full = math.floor(used / limit)
	if windows > 1 and full > 1 then
		local skip = math.min(windows - 1, full - 1)
		used, prev, windows = used - skip * limit, limit, windows - skip
	end
	while windows > 0 and (prev > 0 or used > 0) do
		prev = math.min(used, limit)
		used, windows = used - prev, windows - 1
	end
end
if #state == 24 then
	local s, u, p = struct.unpack('<ddd', state)
	if s - s == 0 and u - u == 0 and p - p == 0 then
		used, prev = math.max(0, u), math.min(math.max(0, p), limit)
		if start > s then pass((start - s) / length) elseif s - start <= length then start = s else moved = true end
	end
end
local left = length - math.max(0, now - start)
local function save(u)
	if u <= 0 and prev <= 0 then return drop() end
	local windows = 1
	if u > 0 then windows = math.ceil(u / limit) + 1 end
	keep(struct.pack('<ddd', start, u, prev), math.ceil((start + windows * length - now) / 1000))
end
local before, taken = used, 0
if op == 'take' then
	local most, back = tonumber(ARGV[5] or n), tonumber(ARGV[6] or 0)
	if back > 0 and tonumber(ARGV[7]) == start then
		used = math.max(0, used - back)
		before = used
	else
		back = 0
	end
	local function fits(m) return used <= limit - m and prev * left <= (limit - used - m) * length end
	if n <= limit and fits(n) then
		taken = n
		if most > n then
			taken = math.max(n, math.min(most, math.floor(limit - used - prev * left / length)))
			if not fits(taken) then taken = n end
		end
	end
	if taken > 0 or back > 0 or moved then save(used + taken) end
elseif op == 'give' then
	local ref = tonumber(ARGV[5])
	if start == ref then
		save(math.max(0, used - n))
	elseif start - ref == length then
		prev = math.max(0, prev - n)
		save(used)
	end
else
	save(math.min(2^53, used + n))
end
return struct.pack('<ddddd', before, now, taken, start, prev)
`, 5)
