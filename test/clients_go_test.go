package test

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
)

// row runs one row of the matrix and notes how it went.
func (c *clientCourse) row(name string, err error) { c.rows[name] = err }

// moduleVersion is that of a module in go.mod.
func moduleVersion(ctx context.Context, module string) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Version}}", module).Output()
	return strings.TrimPrefix(strings.TrimSpace(string(out)), "v"), err
}

// is complains of an error and of an answer other than the one that is wanted.
func is[T any](got T, err error) func(want T) error {
	return func(want T) error {
		if err != nil {
			return fmt.Errorf("want %.100q: %w", fmt.Sprint(want), err)
		}
		if !reflect.DeepEqual(got, want) {
			return fmt.Errorf("got %.100q, want %.100q", fmt.Sprint(got), fmt.Sprint(want))
		}
		return nil
	}
}

func within(got time.Duration, err error, low, high time.Duration) error {
	if err == nil && (got <= low || got > high) {
		err = fmt.Errorf("got %s, want more than %s, at most %s", got, low, high)
	}
	return err
}

// expires waits until get finds the key no more.
func expires(get func() error, none error) error {
	for deadline := time.Now().Add(10 * time.Second); ; {
		switch err := get(); {
		case errors.Is(err, none):
			return nil
		case err != nil:
			return err
		case time.Now().After(deadline):
			return errors.New("a key with a TTL of 30 ms is there after 10 s")
		}
	}
}

const addBoth = "redis.call('incrby', KEYS[1], ARGV[1]) return redis.call('incr', KEYS[2]) -- "

var bigValue = strings.Repeat("0123456789", 5<<20/10)

func runGoRedis(ctx context.Context, c *clientCourse) (err error) {
	if c.version, err = moduleVersion(ctx, "github.com/redis/go-redis/v9"); err != nil {
		return err
	}
	options := func() *redis.Options {
		o := &redis.Options{Addr: "127.0.0.1:" + c.port}
		if !c.resp3 {
			o.Protocol = 2
		}
		return o
	}
	r, idle := redis.NewClient(options()), redis.NewClient(options())
	defer r.Close()
	defer idle.Close()
	k := func(name string) string { return c.keys + name }

	c.row("strings", errors.Join(
		is(r.Set(ctx, k("s"), "1", 0).Result())("OK"),
		is(r.IncrBy(ctx, k("s"), 41).Result())(42),
		is(r.Append(ctx, k("s"), "x").Result())(3),
		is(r.SetNX(ctx, k("s"), "y", 0).Result())(false),
		is(r.GetDel(ctx, k("s")).Result())("42x"),
		is(errors.Is(r.Get(ctx, k("s")).Err(), redis.Nil), nil)(true),
	))
	c.row("hashes", errors.Join(
		is(r.HSet(ctx, k("h"), "a", "1", "b", "2").Result())(2),
		is(r.HGetAll(ctx, k("h")).Result())(map[string]string{"a": "1", "b": "2"}),
		is(r.HIncrBy(ctx, k("h"), "a", 2).Result())(3),
		is(r.HMGet(ctx, k("h"), "a", "none").Result())([]any{"3", nil}),
		is(r.HDel(ctx, k("h"), "a", "b").Result())(2),
	))
	c.row("sorted sets", errors.Join(
		is(r.ZAdd(ctx, k("z"), redis.Z{Score: 1, Member: "a"}, redis.Z{Score: 2.5, Member: "b"}, redis.Z{Score: 3, Member: "c"}).Result())(3),
		is(r.ZRangeWithScores(ctx, k("z"), 0, 1).Result())([]redis.Z{{Score: 1, Member: "a"}, {Score: 2.5, Member: "b"}}),
		is(r.ZScore(ctx, k("z"), "b").Result())(2.5),
		is(r.ZIncrBy(ctx, k("z"), 4, "a").Result())(5),
		is(r.ZRevRank(ctx, k("z"), "a").Result())(0),
		is(r.ZRemRangeByScore(ctx, k("z"), "2", "3").Result())(2),
		is(r.ZCard(ctx, k("z")).Result())(1),
	))
	c.row("pipelines", func() error {
		var gets []*redis.StringCmd
		_, err := r.Pipelined(ctx, func(p redis.Pipeliner) error {
			for i := range 100 {
				p.Set(ctx, k(fmt.Sprint("p", i)), i, 0)
			}
			for i := range 100 {
				gets = append(gets, p.Get(ctx, k(fmt.Sprint("p", i))))
			}
			return nil
		})
		for i, get := range gets {
			err = errors.Join(err, is(get.Int())(i))
		}
		return err
	}())
	names, pairs, values := manyPairs(k)
	c.row("MGET, MSET", errors.Join(
		is(r.MSet(ctx, pairs).Result())("OK"),
		is(r.MGet(ctx, append(names, k("none"))...).Result())(append(values, nil)),
		is(r.Exists(ctx, names...).Result())(int64(len(names))),
		is(r.Del(ctx, names...).Result())(int64(len(names))),
	))
	c.row("TTLs", func() error {
		err := r.Set(ctx, k("t"), "v", 100*time.Second).Err()
		ttl, ttlErr := r.TTL(ctx, k("t")).Result()
		err = errors.Join(err, within(ttl, ttlErr, 0, 100*time.Second), is(r.PExpire(ctx, k("t"), 200*time.Second).Result())(true))
		ttl, ttlErr = r.PTTL(ctx, k("t")).Result()
		return errors.Join(err, within(ttl, ttlErr, 100*time.Second, 200*time.Second),
			is(r.Persist(ctx, k("t")).Result())(true),
			is(r.TTL(ctx, k("t")).Result())(-1),
			r.Set(ctx, k("t"), "v", 30*time.Millisecond).Err(),
			expires(func() error { return r.Get(ctx, k("t")).Err() }, redis.Nil))
	}())
	c.row("scripts", func() error {
		script := redis.NewScript(addBoth + c.keys)
		err := errors.Join(
			is(r.Eval(ctx, "return redis.call('incr', KEYS[1])", []string{k("n")}).Int())(1),
			is(redis.HasErrorPrefix(script.EvalSha(ctx, r, []string{k("{0}a"), k("{0}b")}, 5).Err(), "NOSCRIPT"), nil)(true))
		for i := range 20 {
			keys := []string{k(fmt.Sprintf("{%d}a", i)), k(fmt.Sprintf("{%d}b", i))}
			err = errors.Join(err, is(script.Run(ctx, r, keys, 5).Int())(1), is(r.MGet(ctx, keys...).Result())([]any{"5", "1"}))
		}
		return err
	}())
	c.row("big values", errors.Join(
		r.Set(ctx, k("big"), bigValue, 0).Err(),
		is(r.Get(ctx, k("big")).Result())(bigValue),
		is(r.StrLen(ctx, k("big")).Result())(int64(len(bigValue))),
		is(r.Del(ctx, k("big")).Result())(1),
	))
	if err := idle.Set(ctx, k("idle"), "v", 0).Err(); err != nil {
		return err
	}
	c.row("reconnect", errors.Join(
		c.through(func(i int) error {
			return errors.Join(r.Set(ctx, k("r"), i, 0).Err(), is(r.Get(ctx, k("r")).Int())(i))
		}),
		is(idle.Get(ctx, k("idle")).Result())("v"),
	))
	return nil
}

func runRueidis(ctx context.Context, c *clientCourse) (err error) {
	if c.version, err = moduleVersion(ctx, "github.com/redis/rueidis"); err != nil {
		return err
	}
	options := rueidis.ClientOption{InitAddress: []string{"127.0.0.1:" + c.port}, DisableCache: true, AlwaysRESP2: !c.resp3}
	r, err := rueidis.NewClient(options)
	if err != nil {
		return err
	}
	defer r.Close()
	idle, err := rueidis.NewClient(options)
	if err != nil {
		return err
	}
	defer idle.Close()
	k := func(name string) string { return c.keys + name }
	do := func(words ...string) rueidis.RedisResult {
		return r.Do(ctx, r.B().Arbitrary(words[0]).Keys(words[1]).Args(words[2:]...).Build())
	}

	c.row("strings", errors.Join(
		is(do("SET", k("s"), "1").ToString())("OK"),
		is(do("INCRBY", k("s"), "41").AsInt64())(42),
		is(do("APPEND", k("s"), "x").AsInt64())(3),
		is(do("SETNX", k("s"), "y").AsInt64())(0),
		is(do("GETDEL", k("s")).ToString())("42x"),
		is(rueidis.IsRedisNil(do("GET", k("s")).Error()), nil)(true),
	))
	c.row("hashes", errors.Join(
		is(do("HSET", k("h"), "a", "1", "b", "2").AsInt64())(2),
		is(do("HGETALL", k("h")).AsStrMap())(map[string]string{"a": "1", "b": "2"}),
		is(do("HINCRBY", k("h"), "a", "2").AsInt64())(3),
		is(do("HMGET", k("h"), "a", "none").AsStrSlice())([]string{"3", ""}),
		is(do("HDEL", k("h"), "a", "b").AsInt64())(2),
	))
	c.row("sorted sets", errors.Join(
		is(do("ZADD", k("z"), "1", "a", "2.5", "b", "3", "c").AsInt64())(3),
		is(do("ZRANGE", k("z"), "0", "1", "WITHSCORES").AsZScores())([]rueidis.ZScore{{Member: "a", Score: 1}, {Member: "b", Score: 2.5}}),
		is(do("ZSCORE", k("z"), "b").AsFloat64())(2.5),
		is(do("ZINCRBY", k("z"), "4", "a").AsFloat64())(5),
		is(do("ZREVRANK", k("z"), "a").AsInt64())(0),
		is(do("ZREMRANGEBYSCORE", k("z"), "2", "3").AsInt64())(2),
		is(do("ZCARD", k("z")).AsInt64())(1),
	))
	c.row("pipelines", func() (err error) {
		var batch rueidis.Commands
		for i := range 100 {
			batch = append(batch, r.B().Set().Key(k(fmt.Sprint("p", i))).Value(strconv.Itoa(i)).Build())
		}
		for i := range 100 {
			batch = append(batch, r.B().Get().Key(k(fmt.Sprint("p", i))).Build())
		}
		for i, answer := range r.DoMulti(ctx, batch...) {
			if i < 100 {
				err = errors.Join(err, is(answer.ToString())("OK"))
			} else {
				err = errors.Join(err, is(answer.AsInt64())(int64(i-100)))
			}
		}
		return err
	}())
	names, pairs, values := manyPairs(k)
	var texts []string
	for _, v := range values {
		texts = append(texts, v.(string))
	}
	c.row("MGET, MSET", func() error {
		mset := r.B().Mset().KeyValue()
		for name, value := range pairs {
			mset = mset.KeyValue(name, value)
		}
		return errors.Join(
			r.Do(ctx, mset.Build()).Error(),
			is(r.Do(ctx, r.B().Mget().Key(append(names, k("none"))...).Build()).AsStrSlice())(append(texts, "")),
			is(r.Do(ctx, r.B().Exists().Key(names...).Build()).AsInt64())(int64(len(names))),
			is(r.Do(ctx, r.B().Del().Key(names...).Build()).AsInt64())(int64(len(names))))
	}())
	milliseconds := func(answer rueidis.RedisResult, unit time.Duration) (time.Duration, error) {
		n, err := answer.AsInt64()
		return time.Duration(n) * unit, err
	}
	c.row("TTLs", func() error {
		err := do("SET", k("t"), "v", "EX", "100").Error()
		ttl, ttlErr := milliseconds(do("TTL", k("t")), time.Second)
		err = errors.Join(err, within(ttl, ttlErr, 0, 100*time.Second), is(do("PEXPIRE", k("t"), "200000").AsInt64())(1))
		ttl, ttlErr = milliseconds(do("PTTL", k("t")), time.Millisecond)
		return errors.Join(err, within(ttl, ttlErr, 100*time.Second, 200*time.Second),
			is(do("PERSIST", k("t")).AsInt64())(1),
			is(do("TTL", k("t")).AsInt64())(-1),
			do("SET", k("t"), "v", "PX", "30").Error(),
			expires(func() error { return do("GET", k("t")).Error() }, rueidis.Nil))
	}())
	c.row("scripts", func() error {
		script := rueidis.NewLuaScript(addBoth + c.keys)
		err := is(r.Do(ctx, r.B().Eval().Script("return redis.call('incr', KEYS[1])").Numkeys(1).Key(k("n")).Build()).AsInt64())(1)
		missing := r.Do(ctx, r.B().Evalsha().Sha1(strings.Repeat("0", 40)).Numkeys(1).Key(k("n")).Build()).Error()
		failure, ok := rueidis.IsRedisErr(missing)
		err = errors.Join(err, is(ok && failure.IsNoScript(), nil)(true))
		for i := range 20 {
			keys := []string{k(fmt.Sprintf("{%d}a", i)), k(fmt.Sprintf("{%d}b", i))}
			err = errors.Join(err,
				is(script.Exec(ctx, r, keys, []string{"5"}).AsInt64())(1),
				is(r.Do(ctx, r.B().Mget().Key(keys...).Build()).AsStrSlice())([]string{"5", "1"}))
		}
		return err
	}())
	c.row("big values", errors.Join(
		do("SET", k("big"), bigValue).Error(),
		is(do("GET", k("big")).ToString())(bigValue),
		is(do("STRLEN", k("big")).AsInt64())(int64(len(bigValue))),
		is(do("DEL", k("big")).AsInt64())(1),
	))
	if err := idle.Do(ctx, idle.B().Set().Key(k("idle")).Value("v").Build()).Error(); err != nil {
		return err
	}
	c.row("reconnect", errors.Join(
		c.through(func(i int) error {
			// rueidis repeats reads by itself, and of writes those that are said to bear it.
			set := r.B().Set().Key(k("r")).Value(strconv.Itoa(i)).Build().ToRetryable()
			get := r.B().Get().Key(k("r")).Build()
			return errors.Join(r.Do(ctx, set).Error(), is(r.Do(ctx, get).AsInt64())(int64(i)))
		}),
		is(idle.Do(ctx, idle.B().Get().Key(k("idle")).Build()).ToString())("v"),
	))
	return nil
}

// manyPairs are keys that lie on all shards, each with a value of its own.
func manyPairs(k func(string) string) (names []string, pairs map[string]string, values []any) {
	pairs = map[string]string{}
	for i := range 50 {
		name, value := k(fmt.Sprint("m", i)), strconv.Itoa(i)
		names, values, pairs[name] = append(names, name), append(values, value), value
	}
	return names, pairs, values
}
