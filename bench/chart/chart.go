// Package chart draws what the benchmarks measured as SVG, for the documentation. It measures nothing.
package chart

import (
	"bytes"
	"fmt"
	"image/color"
	"math"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Series is a line of a chart.
type Series struct {
	Name string
	X, Y []float64 // of the same length
}

// Mark is a vertical line at X.
type Mark struct {
	Name string
	X    float64
}

// Lines is a chart of lines over a common axis. Bounds of 0 and 0 follow the values.
type Lines struct {
	Title, X, Y string
	Low, High   float64 // of Y
	Series      []Series
	Marks       []Mark
}

// colors can be told apart by those who see red and green alike (Okabe and Ito).
var colors = []color.RGBA{{0, 114, 178, 255}, {213, 94, 0, 255}, {0, 158, 115, 255}, {204, 121, 167, 255}, {86, 180, 233, 255}, {230, 159, 0, 255}}

const width, height = 9 * vg.Inch, 3.6 * vg.Inch

// ticks are six or so, each a round number.
func ticks(low, high float64) (all []plot.Tick) {
	rough := (high - low) / 6
	step := math.Pow(10, math.Floor(math.Log10(rough)))
	for _, times := range []float64{10, 5, 2} {
		if step*times <= rough*1.5 {
			step *= times
			break
		}
	}
	for i := math.Ceil(low / step); i*step <= high; i++ {
		all = append(all, plot.Tick{Value: i * step, Label: strconv.FormatFloat(i*step, 'g', 4, 64)})
	}
	return all
}

// SVG draws the chart.
func (l Lines) SVG() ([]byte, error) {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = l.Title, l.X, l.Y
	p.Title.Padding = vg.Points(8)
	p.Legend.Top, p.Legend.Left, p.Legend.XOffs = false, true, vg.Points(8)
	p.X.Tick.Marker, p.Y.Tick.Marker = plot.TickerFunc(ticks), plot.TickerFunc(ticks)
	p.Add(plotter.NewGrid())
	for i, s := range l.Series {
		points := make(plotter.XYs, len(s.X))
		for j := range s.X {
			points[j] = plotter.XY{X: s.X[j], Y: s.Y[j]}
		}
		line, err := plotter.NewLine(points)
		if err != nil {
			return nil, fmt.Errorf("draw %q: %w", s.Name, err)
		}
		line.Color, line.Width = colors[i%len(colors)], vg.Points(1.5)
		p.Add(line)
		p.Legend.Add(s.Name, line)
	}
	if l.Low != l.High {
		p.Y.Min, p.Y.Max = l.Low, l.High
	}
	for _, m := range l.Marks {
		line, err := plotter.NewLine(plotter.XYs{{X: m.X, Y: p.Y.Min}, {X: m.X, Y: p.Y.Max}})
		if err != nil {
			return nil, fmt.Errorf("draw %q: %w", m.Name, err)
		}
		line.Dashes = []vg.Length{vg.Points(3), vg.Points(3)}
		label, err := plotter.NewLabels(plotter.XYLabels{XYs: plotter.XYs{{X: m.X, Y: p.Y.Max}}, Labels: []string{" " + m.Name}})
		if err != nil {
			return nil, fmt.Errorf("draw %q: %w", m.Name, err)
		}
		label.Offset.Y = vg.Points(2)
		p.Add(line, label)
	}
	canvas := vgsvg.New(width, height)
	p.Draw(draw.New(canvas))
	var b bytes.Buffer
	_, err := canvas.WriteTo(&b)
	return b.Bytes(), err
}
