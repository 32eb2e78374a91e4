package chart

import (
	"encoding/xml"
	"io"
	"math"
	"strings"
	"testing"
)

func TestSVG(t *testing.T) {
	l := Lines{Title: "Hit rate", X: "seconds", Y: "share", Low: 0, High: 1,
		Series: []Series{{Name: "one", X: []float64{0, 1, 2}, Y: []float64{1, 0.5, 1}}, {Name: "other & more", X: []float64{0, 2}, Y: []float64{0.2, 0.3}}},
		Marks:  []Mark{{Name: "added", X: 1}}}
	svg, err := l.SVG()
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	lines := 0
	for d := xml.NewDecoder(strings.NewReader(string(svg))); ; {
		token, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("not XML: %v", err)
		}
		switch token := token.(type) {
		case xml.CharData:
			text.Write(token)
		case xml.StartElement:
			if token.Name.Local == "path" {
				lines++
			}
		}
	}
	for _, want := range []string{"Hit rate", "seconds", "share", "one", "other & more", "added", "0.2", "0.8"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the chart does not say %q", want)
		}
	}
	if lines < 3 {
		t.Errorf("%d paths: want two series and a mark", lines)
	}
}

func TestNoValue(t *testing.T) {
	if _, err := (Lines{Series: []Series{{Name: "bad", X: []float64{0}, Y: []float64{math.NaN()}}}}).SVG(); err == nil {
		t.Error("a value that is none is drawn")
	}
}

func TestTicks(t *testing.T) {
	for _, test := range []struct {
		low, high float64
		want      string
	}{{0, 269, "0 50 100 150 200 250"}, {0, 24, "0 5 10 15 20"}, {0.889, 0.956, "0.89 0.9 0.91 0.92 0.93 0.94 0.95"}, {-1, 1, "-1 -0.5 0 0.5 1"}, {3, 46, "10 20 30 40"}} {
		var got []string
		for _, tick := range ticks(test.low, test.high) {
			got = append(got, tick.Label)
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("%v to %v: %q, want %q", test.low, test.high, got, test.want)
		}
	}
}
