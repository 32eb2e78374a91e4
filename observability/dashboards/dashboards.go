// Package dashboards is Grafana's view of a mesh, as code: what each panel asks of Prometheus, and how it is laid out.
//
// It is run by nothing but its test, which writes the dashboards to ../grafana/dashboards with -update, and fails when those are
// not what the code says. Nobody edits the JSON.
package dashboards

import (
	"encoding/json"
	"fmt"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/cog/variants"
	"github.com/grafana/grafana-foundation-sdk/go/common"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

// page is one dashboard.
type page struct {
	uid, title, about string
	variables         []variable
	rows              []row
}

// variable is a choice at the top of a page: the values of a label of a metric.
type variable struct{ label, metric string }

type row struct {
	title  string
	panels []panel
}

// panel is a graph, or with number set the last value in large.
type panel struct {
	title, about string
	unit         string
	number       bool
	width        uint32 // of 24
	queries      []query
}

// query is what is asked, and how a line is called.
type query struct{ expr, legend string }

// The choices that pages offer.
var (
	byRegion = variable{"region", "cachemesh_build_info"}
	byPool   = variable{"pool", `cachemesh_shard_up{region=~"$region"}`}
)

// annotations are the events that each page marks in its graphs.
var annotations = []struct{ name, kinds, colour string }{
	{"failures", `kind=~"failover|stand-in|node-lost|switch-failed|frozen|gap"`, "red"},
	{"changes", `kind!~"failover|stand-in|node-lost|switch-failed|frozen|gap"`, "blue"},
}

// source is the data source that is chosen at the top of a page.
var source = common.DataSourceRef{Type: new("prometheus"), Uid: new("$datasource")}

// Files are the dashboards as Grafana reads them, by file name.
func Files() (map[string][]byte, error) {
	files := map[string][]byte{}
	for _, p := range []page{overview, routing, shards, regions, warming} {
		built, err := p.build()
		if err != nil {
			return nil, fmt.Errorf("dashboard %s: %w", p.uid, err)
		}
		data, err := json.MarshalIndent(built, "", "  ")
		if err != nil {
			return nil, fmt.Errorf("dashboard %s: %w", p.uid, err)
		}
		files[p.uid+".json"] = append(data, '\n')
	}
	return files, nil
}

// build makes the classic model: each Grafana reads it from files, and the newer one only lately.
//
//lint:ignore SA1019 see above
func (p page) build() (dashboard.Dashboard, error) {
	//lint:ignore SA1019 see above
	b := dashboard.NewDashboardBuilder(p.title).
		Uid(p.uid).Description(p.about).Tags([]string{"cachemesh"}).
		Time("now-30m", "now").Refresh("10s").Timezone("browser").Tooltip(dashboard.DashboardCursorSyncCrosshair).
		Link(dashboard.NewDashboardLinkBuilder("cachemesh").Type(dashboard.DashboardLinkTypeDashboards).Tags([]string{"cachemesh"}).
			IncludeVars(true).KeepTime(true)).
		WithVariable(dashboard.NewDatasourceVariableBuilder("datasource").Label("Prometheus").Type("prometheus"))
	for _, a := range annotations {
		b.Annotation(dashboard.NewAnnotationQueryBuilder().Name(a.name).Datasource(source).Enable(true).IconColor(a.colour).
			Expr(fmt.Sprintf(`region_kind:cachemesh_controlplane_events:increase1m{region=~"$region", %s} > 0`, a.kinds)).
			TitleFormat("{{kind}}").TextFormat("{{region}}").TagKeys("region,kind").Step("15s"))
	}
	for _, v := range p.variables {
		b.WithVariable(dashboard.NewQueryVariableBuilder(v.label).
			Query(dashboard.StringOrMap{String: new(fmt.Sprintf("label_values(%s, %s)", v.metric, v.label))}).
			Datasource(source).Refresh(dashboard.VariableRefreshOnTimeRangeChanged).Sort(dashboard.VariableSortAlphabeticalAsc).
			Multi(true).IncludeAll(true).AllValue(".*").
			Current(dashboard.VariableOption{
				Text:  dashboard.StringOrArrayOfString{String: new("All")},
				Value: dashboard.StringOrArrayOfString{String: new("$__all")},
			}))
	}
	for _, r := range p.rows {
		b.WithRow(dashboard.NewRowBuilder(r.title))
		for _, panel := range r.panels {
			b.WithPanel(panel.build())
		}
	}
	return b.Build()
}

func (p panel) build() cog.Builder[dashboard.Panel] {
	targets := make([]cog.Builder[variants.Dataquery], len(p.queries))
	for i, q := range p.queries {
		targets[i] = prometheus.NewDataqueryBuilder().Expr(q.expr).LegendFormat(q.legend).Range().
			Datasource(source).RefId(string(rune('A' + i)))
	}
	if p.number {
		return stat.NewPanelBuilder().Title(p.title).Description(p.about).Datasource(source).Targets(targets).
			Unit(p.unit).Height(4).Span(p.width).GraphMode(common.BigValueGraphModeArea).Orientation(common.VizOrientationAuto).
			ReduceOptions(common.NewReduceDataOptionsBuilder().Calcs([]string{"lastNotNull"}))
	}
	return timeseries.NewPanelBuilder().Title(p.title).Description(p.about).Datasource(source).Targets(targets).
		Unit(p.unit).Min(0).Height(8).Span(p.width).FillOpacity(5).ShowPoints(common.VisibilityModeNever).
		Legend(common.NewVizLegendOptionsBuilder().DisplayMode(common.LegendDisplayModeList).Placement(common.LegendPlacementBottom).ShowLegend(true)).
		Tooltip(common.NewVizTooltipOptionsBuilder().Mode(common.TooltipDisplayModeMulti).Sort(common.SortOrderDescending))
}
