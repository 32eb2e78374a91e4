package handoff_test

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cachemesh/cachemesh/handoff"
	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/node"
)

// BenchmarkCopy copies a fifth of the keys of four shards to a fifth one. One key is an operation.
func BenchmarkCopy(b *testing.B) {
	p := newPool(b, names(1, 2, 3, 4), names(1, 2, 3, 4, 5), false)
	p.spec.Hashing = mesh.Hashing{Algorithm: mesh.Maglev, Size: 65537}
	p.before, p.after = p.ring(p.spec.From), p.ring(p.spec.To)
	moving := int64(0)
	pipes := map[string]redis.Pipeliner{}
	for i := 0; moving < int64(b.N); i++ {
		key := fmt.Sprintf("timeline:%d", i)
		home := p.from(key)
		if pipes[home] == nil {
			pipes[home] = p.nodes[home].redis.Pipeline()
		}
		pipes[home].Set(b.Context(), key, strings.Repeat("v", 230), 0)
		if home != p.to(key) {
			moving++
		}
		if i%10_000 == 0 || moving == int64(b.N) {
			for _, pipe := range pipes {
				if _, err := pipe.Exec(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	cpu := func() (donors, recipient, own time.Duration) {
		for name := range p.nodes {
			info, _ := p.do(name, "INFO", "cpu").(string)
			user, _ := strconv.ParseFloat(node.Field(info, "used_cpu_user"), 64)
			system, _ := strconv.ParseFloat(node.Field(info, "used_cpu_sys"), 64)
			used := time.Duration((user + system) * float64(time.Second))
			if name == "timelines-5" {
				recipient = used
			} else {
				donors += used
			}
		}
		var usage syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
			b.Fatal(err)
		}
		return donors, recipient, time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	}
	donors, recipient, own := cpu()
	b.ResetTimer()
	p.move()
	p.until(handoff.Copy)
	b.StopTimer()
	donorsAfter, recipientAfter, ownAfter := cpu()
	each := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 / float64(moving) }
	b.ReportMetric(float64(moving)/b.Elapsed().Seconds(), "keys/s")
	b.ReportMetric(each(donorsAfter-donors), "donor-µs/key")
	b.ReportMetric(each(recipientAfter-recipient), "recipient-µs/key")
	b.ReportMetric(each(ownAfter-own), "mover-µs/key")
}
