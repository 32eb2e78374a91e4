// Command mutants plants bugs in package shards, one at a time, and has the simulator look for each. It shows which invariant caught
// which bug at which seed, and fails if one survives, or fits the source no more.
//
// The source stays as it is: the compiler is given the changed file in its place.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

func main() {
	seeds := flag.Int("seeds", 10000, "try each with so many")
	only := flag.String("only", "", "try those whose name contains this")
	flag.Parse()
	if err := run(*seeds, *only); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(seeds int, only string) error {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("go list: %w: run this inside the repository", err)
	}
	root := strings.TrimSpace(string(out))
	dir, err := os.MkdirTemp("", "mutants")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var problems []string
	tried := 0
	fmt.Printf("%-52s %-38s %6s %7s\n", "bug", "caught by", "seed", "took")
	for _, m := range mutants {
		if !strings.Contains(m.name, only) {
			continue
		}
		tried++
		begun := time.Now()
		caught, err := m.try(root, dir, seeds)
		if err != nil {
			problems = append(problems, m.name+": "+err.Error())
			caught.invariant = "NOT CAUGHT"
		}
		fmt.Printf("%-52s %-38s %6d %6.1fs\n", m.name, caught.invariant, caught.seed, time.Since(begun).Seconds())
	}
	if len(problems) > 0 {
		return fmt.Errorf("%d of %d bugs:\n%s", len(problems), tried, strings.Join(problems, "\n"))
	}
	fmt.Printf("%d bugs, all caught\n", tried)
	return nil
}

// caught is what an invariant says of a mutant.
type caught struct {
	seed      int
	invariant string
}

// try builds the simulator with the bug, and runs it.
func (m mutant) try(root, dir string, seeds int) (caught, error) {
	replace := map[string]string{}
	for i, e := range m.edits {
		original := filepath.Join(root, "shards", e.file)
		source := original
		if changed, ok := replace[original]; ok {
			source = changed
		}
		text, err := os.ReadFile(source)
		if err != nil {
			return caught{}, err
		}
		if n := strings.Count(string(text), e.old); n != 1 {
			return caught{}, fmt.Errorf("shards/%s has %d times %q: once is needed", e.file, n, e.old)
		}
		changed := filepath.Join(dir, fmt.Sprintf("%d-%s", i, e.file))
		if err := os.WriteFile(changed, []byte(strings.Replace(string(text), e.old, e.new, 1)), 0o600); err != nil {
			return caught{}, err
		}
		replace[original] = changed
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return caught{}, err
	}
	overlayFile, binary := filepath.Join(dir, "overlay.json"), filepath.Join(dir, "sim")
	if err := os.WriteFile(overlayFile, overlay, 0o600); err != nil {
		return caught{}, err
	}
	build := exec.Command("go", "build", "-overlay", overlayFile, "-o", binary, "./sim")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return caught{}, fmt.Errorf("it does not build: %s", out)
	}
	out, err := exec.Command(binary, "--quiet", "--seeds", strconv.Itoa(seeds)).Output()
	if err == nil {
		return caught{}, fmt.Errorf("it survives %d seeds", seeds)
	}
	fields := strings.SplitN(strings.TrimSpace(string(out)), "\t", 3)
	if len(fields) < 3 {
		return caught{}, fmt.Errorf("the simulator says %q: %w", out, err)
	}
	seed, err := strconv.Atoi(fields[0])
	return caught{seed, fields[1]}, err
}
