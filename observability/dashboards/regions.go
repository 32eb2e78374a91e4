package dashboards

import "github.com/grafana/grafana-foundation-sdk/go/units"

// regions answers how soon other regions learn of a write, and what they lack.
var regions = page{
	uid: "cachemesh-regions", title: "cachemesh: regions", about: "How soon other regions learn of what a region writes, and what they lack. A region is the one that writes. Empty without coherent routes.",
	variables: []variable{byRegion, byPool},
	rows: []row{
		{title: "Now", panels: []panel{
			{title: "Lag", about: "Age of the oldest write that the other region has not heard of.", unit: units.Seconds, number: true, width: 6,
				queries: []query{{`max by (region, to) (region_to_pool:cachemesh_link_lag_seconds:max{region=~"$region", pool=~"$pool"})`, "{{region}} to {{to}}"}}},
			{title: "Backlog", about: "Entries of journals that the other region lacks.", unit: units.Short, number: true, width: 6,
				queries: []query{{`sum by (region, to) (region_to_pool:cachemesh_link_backlog_entries:sum{region=~"$region", pool=~"$pool"})`, "{{region}} to {{to}}"}}},
			{title: "Gaps", about: "Times that a journal has lost something, of the last hour. Fences make them good.", unit: units.Short, number: true, width: 6,
				queries: []query{{`sum by (region, to) (max by (region, to, pool, shard, reason) (increase(cachemesh_link_gaps_total{region=~"$region", pool=~"$pool"}[1h])))`, "{{region}} to {{to}}"}}},
			{title: "Fences", about: "That the other region has not carried out: it may serve old values.", unit: units.Short, number: true, width: 6,
				queries: []query{{`sum by (region, to) (max by (region, to, pool, shard) (cachemesh_link_fences{region=~"$region", pool=~"$pool"}))`, "{{region}} to {{to}}"}}},
		}},
		{title: "Links", panels: []panel{
			{title: "Lag by pool", unit: units.Seconds, width: 8,
				queries: []query{{`region_to_pool:cachemesh_link_lag_seconds:max{region=~"$region", pool=~"$pool"}`, "{{region}} to {{to}} {{pool}}"}}},
			{title: "Backlog by pool", about: "Entries of journals that the other region lacks.", unit: units.Short, width: 8,
				queries: []query{{`region_to_pool:cachemesh_link_backlog_entries:sum{region=~"$region", pool=~"$pool"}`, "{{region}} to {{to}} {{pool}}"}}},
			{title: "Removals", about: "Keys that the other region is told to remove, a second.", unit: units.OpsPerSecond, width: 8,
				queries: []query{{`region_to_pool:cachemesh_link_removals:rate1m{region=~"$region", pool=~"$pool"}`, "{{region}} to {{to}} {{pool}}"}}},
			{title: "Journals in use", about: "Of what the fullest keeps for a region that is behind: ten minutes, or a million entries. Beyond that there is a gap.", unit: units.PercentUnit, width: 8,
				queries: []query{{`max by (region, to, pool) (region_to_pool_shard:cachemesh_link_journal_used:ratio{region=~"$region", pool=~"$pool"})`, "{{region}} to {{to}} {{pool}}"}}},
			{title: "State of links", about: "Pools whose journals get to the other region (up), do not (down), or are not to (paused).", unit: units.Short, width: 8,
				queries: []query{{`sum by (region, to, state) (max by (region, to, pool, state) (cachemesh_link_state{region=~"$region", pool=~"$pool"}))`, "{{region}} to {{to}} {{state}}"}}},
			{title: "Journals that are read", about: "By an agent, for the other region. All of the pools' shards is what it should be.", unit: units.Short, width: 8,
				queries: []query{{`sum by (region, to, pool) (max by (region, to, pool, shard) (cachemesh_link_read{region=~"$region", pool=~"$pool"}))`, "{{region}} to {{to}} {{pool}}"}}},
			{title: "Gaps by reason", about: "Of the last five minutes.", unit: units.Short, width: 8,
				queries: []query{{`sum by (region, to, reason) (max by (region, to, pool, shard, reason) (increase(cachemesh_link_gaps_total{region=~"$region", pool=~"$pool"}[5m])))`, "{{region}} to {{to}} {{reason}}"}}},
			{title: "Fences by pool", about: "That the other region has not carried out.", unit: units.Short, width: 8,
				queries: []query{{`sum by (region, to, pool) (max by (region, to, pool, shard) (cachemesh_link_fences{region=~"$region", pool=~"$pool"}))`, "{{region}} to {{to}} {{pool}}"}}},
		}},
		{title: "Lanes", panels: []panel{
			{title: "Writes through lanes", unit: units.OpsPerSecond, width: 8,
				queries: []query{{`region_shard:cachemesh_sidecar_lane_commands:rate1m{region=~"$region"}`, "{{region}} {{shard}}"}}},
			{title: "Writes a batch", about: "The more are written at once, the fewer round trips each costs.", unit: units.Short, width: 8,
				queries: []query{{`sum by (region) (region_shard:cachemesh_sidecar_lane_commands:rate1m{region=~"$region"}) / sum by (region) (region_shard:cachemesh_sidecar_lane_batches:rate1m{region=~"$region"})`, "{{region}}"}}},
			{title: "Entries of journals", about: "That lanes write, a second.", unit: units.OpsPerSecond, width: 8,
				queries: []query{{`sum by (region) (rate(cachemesh_sidecar_lane_entries_total{region=~"$region"}[$__rate_interval]))`, "{{region}}"}}},
			{title: "Errors of lanes", about: "Batches that a lane answered with an error of its own, for want of a primary that takes writes.", unit: units.OpsPerSecond, width: 8,
				queries: []query{
					{`sum by (region) (region_sidecar:cachemesh_sidecar_lane_errors:rate1m{region=~"$region"})`, "{{region}} errors"},
					{`sum by (region) (rate(cachemesh_sidecar_lane_unknown_total{region=~"$region"}[$__rate_interval]))`, "{{region}} that may have taken effect"},
				}},
			{title: "What journals did not take", about: "Other regions are told over the link directly, or by a fence.", unit: units.OpsPerSecond, width: 8,
				queries: []query{{`sum by (region) (rate(cachemesh_sidecar_lane_gaps_total{region=~"$region"}[$__rate_interval]))`, "{{region}}"}}},
			{title: "Writes that no replica confirmed", about: "In time, on routes with durability: replica.", unit: units.OpsPerSecond, width: 8,
				queries: []query{{`sum by (region) (rate(cachemesh_sidecar_lane_unreplicated_total{region=~"$region"}[$__rate_interval]))`, "{{region}}"}}},
			{title: "Refills within a hold-off", about: "They keep the rest of the hold-off only, and their keys are invalidated once more at its end.", unit: units.OpsPerSecond, width: 8,
				queries: []query{
					{`sum by (region) (rate(cachemesh_sidecar_lane_suspect_total{region=~"$region"}[$__rate_interval]))`, "{{region}} refills"},
					{`sum by (region) (rate(cachemesh_sidecar_lane_again_total{region=~"$region"}[$__rate_interval]))`, "{{region}} invalidated again"},
				}},
			{title: "Connections to lanes", unit: units.Short, width: 8,
				queries: []query{{`sum by (region) (cachemesh_sidecar_lane_connections{region=~"$region"})`, "{{region}}"}}},
			{title: "Keys that no replica has yet", about: "What lanes would invalidate again after a failover.", unit: units.BytesIEC, width: 8,
				queries: []query{{`sum by (region) (cachemesh_sidecar_lane_tail_bytes{region=~"$region"})`, "{{region}}"}}},
		}},
	},
}
