package main

import (
	"os"
	"strings"
	"testing"
)

func TestEachMutantFitsTheSource(t *testing.T) {
	if len(mutants) < 20 {
		t.Errorf("only %d mutants", len(mutants))
	}
	names := map[string]bool{}
	for _, m := range mutants {
		if names[m.name] {
			t.Errorf("%s: twice", m.name)
		}
		names[m.name] = true
		for _, e := range m.edits {
			text, err := os.ReadFile("../../shards/" + e.file)
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(text), e.old); n != 1 {
				t.Errorf("%s: shards/%s has %d times %q: once is needed", m.name, e.file, n, e.old)
			}
		}
	}
}
