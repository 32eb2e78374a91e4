package holdoff

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/process"
)

// cost is a Redis whose own time is measured.
type cost struct {
	*redis.Client
	b *testing.B
}

func startCost(b *testing.B) cost {
	ports, err := process.FreePorts(1)
	if err != nil {
		b.Fatal(err)
	}
	r := process.Redis{Port: ports[0], Dir: b.TempDir()}
	p, err := r.Start(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.Stop(5 * time.Second) })
	c := redis.NewClient(&redis.Options{Addr: r.Address(), ReadTimeout: time.Minute})
	b.Cleanup(func() { c.Close() })
	return cost{c, b}
}

// cpu is how long it has worked.
func (c cost) cpu() (ns float64) {
	info := c.InfoMap(context.Background(), "cpu").Val()["CPU"]
	for _, name := range []string{"used_cpu_user_main_thread", "used_cpu_sys_main_thread"} {
		s, err := strconv.ParseFloat(info[name], 64)
		if err != nil {
			c.b.Fatal(name, err)
		}
		ns += s * 1e9
	}
	return ns
}

// BenchmarkDelete measures a DEL in batches, with and without a mark for each.
func BenchmarkDelete(b *testing.B) {
	c, ctx := startCost(b), context.Background()
	for _, size := range []int{1, 16, 256} {
		for _, how := range []string{"bare", "marked"} {
			b.Run(fmt.Sprintf("batch=%d/%s", size, how), func(b *testing.B) {
				c.FlushAll(ctx)
				before, n := c.cpu(), 0
				for b.Loop() {
					pipe := c.Pipeline()
					var note Note
					for range size {
						n++
						note.Removed = append(note.Removed, Mark{fmt.Appendf(nil, "user:%d", n%50_000), time.Minute})
					}
					for _, m := range note.Removed {
						pipe.Do(ctx, "DEL", m.Key)
					}
					if how == "marked" {
						pipe.Do(ctx, arguments(b, AppendMarks(nil, note.Removed, time.Now()))...)
					}
					if _, err := pipe.Exec(ctx); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric((c.cpu()-before)/float64(n), "redis-ns/write")
			})
		}
	}
}

// BenchmarkWrite measures Redis's own time of a SET in batches, with and without a look whether the keys are held.
func BenchmarkWrite(b *testing.B) {
	c, ctx := startCost(b), context.Background()
	for _, marks := range []int{0, 10_000} {
		for _, size := range []int{1, 16, 256} {
			var note Note
			for i := range size {
				note.Written = append(note.Written, fmt.Appendf(nil, "user:%d", i))
			}
			var look, exist [][]any
			for _, command := range looks(AppendLook(nil, note.Written)) {
				look = append(look, arguments(b, command))
			}
			for _, k := range note.Written {
				exist = append(exist, []any{"EXISTS", heldKey + ":" + string(k)})
			}
			for how, more := range map[string][][]any{"bare": nil, "look": look, "script": {note.Args()}, "mark a key": exist} {
				b.Run(fmt.Sprintf("marks=%d/batch=%d/%s", marks, size, how), func(b *testing.B) {
					c.FlushAll(ctx)
					var held Note
					for i := range marks {
						held.Removed = append(held.Removed, Mark{fmt.Appendf(nil, "held:%d", i), time.Minute})
					}
					if marks > 0 {
						c.Do(ctx, held.Args()...)
					}
					before := c.cpu()
					for b.Loop() {
						pipe := c.Pipeline()
						for _, k := range note.Written {
							pipe.Do(ctx, "SET", k, "0123456789", "EX", 3600)
						}
						for _, command := range more {
							pipe.Do(ctx, command...)
						}
						if _, err := pipe.Exec(ctx); err != nil && err != redis.Nil {
							b.Fatal(err)
						}
					}
					b.ReportMetric((c.cpu()-before)/float64(b.N*size), "redis-ns/write")
				})
			}
		}
	}
}
