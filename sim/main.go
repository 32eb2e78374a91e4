// Command sim runs the decisions of package shards, the real state machine and the real lease, in a simulated region: control
// planes, Consul, Redis nodes, agents and a network, all in virtual time and all by the chance of a seed. It breaks whatever it can,
// at every step, and holds what then happens against invariants with a bookkeeping of its own (see judge).
//
// It starts no process, opens no socket and reads no clock but for its own speed. A seed gives the same run on every machine:
// `go run ./sim --seed N --trace` shows it.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	seed := flag.Uint64("seed", 0, "run this one only")
	seeds := flag.Uint64("seeds", 1000, "run so many")
	from := flag.Uint64("from", 1, "the first of them")
	trace := flag.Bool("trace", false, "with --seed: show every event")
	quiet := flag.Bool("quiet", false, "no progress and no summary: only the first failure, in one line")
	flag.Parse()
	if *seed > 0 {
		os.Exit(replay(*seed, *trace))
	}
	os.Exit(runAll(*from, *seeds, *quiet))
}

// replay runs one seed; it shows the trace if asked to, and if the seed fails.
func replay(seed uint64, all bool) int {
	o := simulate(seed, nil)
	if all || o.failure != nil {
		simulate(seed, func(line string) { fmt.Println(line) })
	}
	if o.failure != nil {
		fmt.Printf("seed %d: %s at %.3f s: %s\n", seed, o.failure.invariant, o.failure.at.Seconds(), o.failure.text)
		return 1
	}
	fmt.Printf("seed %d: all invariants held for %.0f s\n", seed, o.lasted.Seconds())
	return 0
}

// runAll runs many seeds on all processors, and ends with the first failure.
func runAll(from, seeds uint64, quiet bool) int {
	begun := time.Now()
	done, failed := sweep(from, seeds, func(n uint64) {
		if !quiet && n%500 == 0 {
			fmt.Fprintf(os.Stderr, "%d of %d seeds, %.0f s\n", n, seeds, time.Since(begun).Seconds())
		}
	})
	if failed != nil && quiet {
		fmt.Printf("%d\t%s\t%s\n", failed.seed, failed.failure.invariant, failed.failure.text)
		return 1
	}
	if failed != nil {
		replay(failed.seed, true)
		fmt.Printf("replay it with: go run ./sim --seed %d --trace\n", failed.seed)
		return 1
	}
	if !quiet {
		summary(done, seeds, time.Since(begun))
	}
	return 0
}

// sweep runs seeds until one fails. Of several that failed it returns the lowest.
func sweep(from, seeds uint64, progress func(uint64)) (counts map[string]int, failed *outcome) {
	counts = map[string]int{}
	var next, finished atomic.Uint64
	var mu sync.Mutex
	var work sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		work.Go(func() {
			for {
				seed := from + next.Add(1) - 1
				mu.Lock()
				stop := seed >= from+seeds || failed != nil
				mu.Unlock()
				if stop {
					return
				}
				o := simulate(seed, nil)
				progress(finished.Add(1))
				mu.Lock()
				for what, n := range o.counts {
					counts[what] += n
				}
				counts["virtual seconds"] += int(o.lasted.Seconds())
				if o.failure != nil && (failed == nil || o.seed < failed.seed) {
					failed = &o
				}
				mu.Unlock()
			}
		})
	}
	work.Wait()
	return counts, failed
}

func summary(counts map[string]int, seeds uint64, took time.Duration) {
	var names []string
	for name := range counts {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Printf("%10d  %s\n", counts[name], name)
	}
	fmt.Printf("%d seeds: all invariants held, in %.1f s\n", seeds, took.Seconds())
}
