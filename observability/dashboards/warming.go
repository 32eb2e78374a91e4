package dashboards

import "github.com/grafana/grafana-foundation-sdk/go/units"

// warming answers what was loaded ahead, and whether that was worth it.
var warming = page{
	uid: "cachemesh-warming", title: "cachemesh: warming", about: "What plans load before anybody asks for it, and how much of that is read. Empty without plans.",
	variables: []variable{byRegion, {"plan", `cachemesh_warming_active{region=~"$region"}`}},
	rows: []row{
		{title: "Now", panels: []panel{
			{title: "Runs under way", unit: units.Short, number: true, width: 6,
				queries: []query{{`sum by (region) (max by (region, plan) (cachemesh_warming_active{region=~"$region", plan=~"$plan"}))`, "{{region}}"}}},
			{title: "Useful", about: "Part of the keys that the last runs loaded that was read since, by a sample.", unit: units.PercentUnit, number: true, width: 6,
				queries: []query{{`sum by (region) (max by (region, plan) (cachemesh_warming_sampled_read_keys{region=~"$region", plan=~"$plan"})) / clamp_min(sum by (region) (max by (region, plan) (cachemesh_warming_sampled_keys{region=~"$region", plan=~"$plan"})), 1)`, "{{region}}"}}},
			{title: "Database reads saved", about: "By the runs that are kept: keys that were loaded and then read.", unit: units.Short, number: true, width: 6,
				queries: []query{{`sum by (region) (max by (region, plan) (cachemesh_warming_origin_reads_saved{region=~"$region", plan=~"$plan"}))`, "{{region}}"}}},
			{title: "Plans that are not used", about: "Because of a mistake in them: see `cachemesh warm list`.", unit: units.Short, number: true, width: 6,
				queries: []query{{`max by (region) (cachemesh_warming_plans_refused{region=~"$region"})`, "{{region}}"}}},
		}},
		{title: "Plans", panels: []panel{
			{title: "Useful by plan", about: "Part of the keys that the last runs loaded that was read since.", unit: units.PercentUnit, width: 8,
				queries: []query{{`region_plan:cachemesh_warming_useful:ratio{region=~"$region", plan=~"$plan"}`, "{{region}} {{plan}}"}}},
			{title: "Evicted unread", about: "Part of the keys that the last runs loaded that was evicted and never read.", unit: units.PercentUnit, width: 8,
				queries: []query{{`max by (region, plan) (cachemesh_warming_sampled_evicted_keys{region=~"$region", plan=~"$plan"}) / clamp_min(max by (region, plan) (cachemesh_warming_sampled_keys{region=~"$region", plan=~"$plan"}), 1)`, "{{region}} {{plan}}"}}},
			{title: "Database reads saved by plan", unit: units.Short, width: 8,
				queries: []query{{`max by (region, plan) (cachemesh_warming_origin_reads_saved{region=~"$region", plan=~"$plan"})`, "{{region}} {{plan}}"}}},
			{title: "Progress", about: "Part of the run's keys that are done; 1 between runs.", unit: units.PercentUnit, width: 8,
				queries: []query{{`min by (region, plan) (cachemesh_warming_done_ratio{region=~"$region", plan=~"$plan"})`, "{{region}} {{plan}}"}}},
			{title: "Runs that ended", about: "Of the last hour, by how.", unit: units.Short, width: 8,
				queries: []query{{`sum by (region, plan, result) (increase(cachemesh_warming_runs_total{region=~"$region", plan=~"$plan"}[1h]))`, "{{region}} {{plan}} {{result}}"}}},
			{title: "Times without a run", about: "Of the last hour: no control plane ran, or the run before was not over.", unit: units.Short, width: 8,
				queries: []query{{`sum by (region, plan) (increase(cachemesh_warming_missed_total{region=~"$region", plan=~"$plan"}[1h]))`, "{{region}} {{plan}}"}}},
		}},
		{title: "Loading", panels: []panel{
			{title: "Keys a second", about: "By what became of them.", unit: units.OpsPerSecond, width: 8,
				queries: []query{{`sum by (region, result) (region_plan_result:cachemesh_warming_keys:rate1m{region=~"$region", plan=~"$plan"})`, "{{region}} {{result}}"}}},
			{title: "Keys a second by plan", about: "That were loaded.", unit: units.OpsPerSecond, width: 8,
				queries: []query{{`region_plan_result:cachemesh_warming_keys:rate1m{region=~"$region", plan=~"$plan", result="loaded"}`, "{{region}} {{plan}}"}}},
			{title: "Bytes a second", about: "Of keys and values that were loaded.", unit: units.BytesPerSecondIEC, width: 8,
				queries: []query{{`sum by (region, plan) (rate(cachemesh_warming_loaded_bytes_total{region=~"$region", plan=~"$plan"}[$__rate_interval]))`, "{{region}} {{plan}}"}}},
		}},
		{title: "Events", panels: []panel{
			{title: "Events of the application", about: "That this region's control planes are told of; dropped are too many at once.", unit: units.OpsPerSecond, width: 8,
				queries: []query{{`max by (region, result) (rate(cachemesh_warming_events_total{region=~"$region"}[$__rate_interval]))`, "{{region}} {{result}}"}}},
			{title: "Events that rules want something of", unit: units.OpsPerSecond, width: 8,
				queries: []query{{`sum by (region, plan) (rate(cachemesh_warming_matched_events_total{region=~"$region", plan=~"$plan"}[$__rate_interval]))`, "{{region}} {{plan}}"}}},
			{title: "Events on which a rule fails", about: "They lack a field that its keys or regions need.", unit: units.OpsPerSecond, width: 8,
				queries: []query{{`sum by (region, plan) (rate(cachemesh_warming_rule_errors_total{region=~"$region", plan=~"$plan"}[$__rate_interval]))`, "{{region}} {{plan}}"}}},
		}},
	},
}
