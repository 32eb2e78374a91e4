package dashboards

import "github.com/grafana/grafana-foundation-sdk/go/units"

// shards answers which shard is busy, full, cold or down, and who is primary.
var shards = page{
	uid: "cachemesh-shards", title: "cachemesh: shards", about: "Which shard is busy, full, cold or down, and who is primary. Figures are those of primaries unless said.",
	variables: []variable{byRegion, byPool},
	rows: []row{
		{title: "Spread", panels: []panel{
			{title: "Operations, busiest over its share", about: "By weight; 1 is an even spread. Of the last minute.", unit: units.Short, number: true, width: 6,
				queries: []query{{`max by (region, pool) (cachemesh_pool_spread{region=~"$region", pool=~"$pool", of="operations"})`, "{{region}} {{pool}}"}}},
			{title: "Keys, fullest over its share", about: "By weight; 1 is an even spread. The ring alone decides it.", unit: units.Short, number: true, width: 6,
				queries: []query{{`max by (region, pool) (cachemesh_pool_spread{region=~"$region", pool=~"$pool", of="keys"})`, "{{region}} {{pool}}"}}},
			{title: "Memory, fullest over its share", about: "By weight; 1 is an even spread.", unit: units.Short, number: true, width: 6,
				queries: []query{{`max by (region, pool) (cachemesh_pool_spread{region=~"$region", pool=~"$pool", of="bytes"})`, "{{region}} {{pool}}"}}},
			{title: "Nodes that do not answer", unit: units.Short, number: true, width: 6,
				queries: []query{{`sum by (region) (1 - max by (region, pool, shard, node) (cachemesh_shard_up{region=~"$region", pool=~"$pool"}))`, "{{region}}"}}},
		}},
		{title: "Load", panels: []panel{
			{title: "Commands", about: "As Redis counts, those of replication and probes included.", unit: units.OpsPerSecond, width: 8,
				queries: []query{{`region_pool_shard:cachemesh_shard_commands:rate1m{region=~"$region", pool=~"$pool"}`, "{{region}} {{shard}}"}}},
			{title: "Requests of sidecars", unit: units.RequestsPerSecond, width: 8,
				queries: []query{{`region_pool_shard:envoy_cluster_endpoint_rq:rate1m{region=~"$region", pool=~"$pool"}`, "{{region}} {{shard}}"}}},
			{title: "Time-outs and failed connections of sidecars", unit: units.OpsPerSecond, width: 8,
				queries: []query{
					{`region_pool_shard:envoy_cluster_endpoint_rq_timeout:rate1m{region=~"$region", pool=~"$pool"}`, "{{region}} {{shard}} time-outs"},
					{`region_pool_shard:envoy_cluster_endpoint_cx_connect_fail:rate1m{region=~"$region", pool=~"$pool"}`, "{{region}} {{shard}} connections"},
				}},
			{title: "Look-ups", unit: units.OpsPerSecond, width: 8,
				queries: []query{{`region_pool_shard:cachemesh_shard_lookups:rate1m{region=~"$region", pool=~"$pool"}`, "{{region}} {{shard}}"}}},
			{title: "Hit rate", unit: units.PercentUnit, width: 8,
				queries: []query{{`region_pool_shard:cachemesh_shard_hits:ratio1m{region=~"$region", pool=~"$pool"}`, "{{region}} {{shard}}"}}},
			{title: "Connections", about: "To the node, those of probes and replicas included.", unit: units.Short, width: 8,
				queries: []query{{`max by (region, shard) (cachemesh_shard_clients{region=~"$region", pool=~"$pool", role="primary"})`, "{{region}} {{shard}}"}}},
		}},
		{title: "Content", panels: []panel{
			{title: "Keys", unit: units.Short, width: 8,
				queries: []query{{`region_pool_shard:cachemesh_shard_keys:max{region=~"$region", pool=~"$pool"}`, "{{region}} {{shard}}"}}},
			{title: "Memory", unit: units.BytesIEC, width: 8,
				queries: []query{{`region_pool_shard:cachemesh_shard_memory_bytes:max{region=~"$region", pool=~"$pool"}`, "{{region}} {{shard}}"}}},
			{title: "Memory, of its limit", about: "Only nodes that have a limit.", unit: units.PercentUnit, width: 8,
				queries: []query{{`max by (region, shard) (cachemesh_shard_memory_bytes{region=~"$region", pool=~"$pool", role="primary"} / (cachemesh_shard_memory_limit_bytes > 0))`, "{{region}} {{shard}}"}}},
			{title: "Evictions", unit: units.OpsPerSecond, width: 8,
				queries: []query{{`region_pool_shard:cachemesh_shard_evictions:rate1m{region=~"$region", pool=~"$pool"}`, "{{region}} {{shard}}"}}},
			{title: "Expirations", unit: units.OpsPerSecond, width: 8,
				queries: []query{{`region_pool_shard:cachemesh_shard_expirations:rate1m{region=~"$region", pool=~"$pool"}`, "{{region}} {{shard}}"}}},
		}},
		{title: "Who is primary", panels: []panel{
			{title: "Failovers", about: "Of the last hour. A shard that had no node left is one, too.", unit: units.Short, number: true, width: 6,
				queries: []query{{`sum by (region) (max by (region, kind) (increase(cachemesh_controlplane_events_total{region=~"$region", kind=~"failover|stand-in"}[1h])))`, "{{region}}"}}},
			{title: "Failover, p99", about: "From the primary's last good answer until sidecars had acknowledged another; of the last day.", unit: units.Seconds, number: true, width: 6,
				queries: []query{{`histogram_quantile(0.99, sum by (le, region) (increase(cachemesh_failover_seconds_bucket{region=~"$region"}[1d])))`, "{{region}}"}}},
			{title: "Shards without a node", about: "An empty stand-in answers: reads miss, writes are dropped.", unit: units.Short, number: true, width: 6,
				queries: []query{{`sum by (region) (max by (region, pool, shard) (cachemesh_shard_stand_in{region=~"$region", pool=~"$pool", kind="null"}))`, "{{region}}"}}},
			{title: "Frozen pools", about: "They lost many nodes at once, and change when that is accepted.", unit: units.Short, number: true, width: 6,
				queries: []query{{`sum by (region) (max by (region, pool) (cachemesh_pool_frozen{region=~"$region", pool=~"$pool"}))`, "{{region}}"}}},
			{title: "Events", about: "What has happened to shards; cachemesh events tells more.", unit: units.Short, width: 8,
				queries: []query{{`region_kind:cachemesh_controlplane_events:increase1m{region=~"$region"}`, "{{region}} {{kind}}"}}},
			{title: "Epochs", about: "Each step is another primary.", unit: units.Short, width: 8,
				queries: []query{{`max by (region, shard) (cachemesh_shard_epoch{region=~"$region", pool=~"$pool"})`, "{{region}} {{shard}}"}}},
			{title: "Witnesses", about: "What sidecars say of the primaries that they watch.", unit: units.Short, width: 8,
				queries: []query{{`sum by (region, state) (max by (region, pool, shard, state) (cachemesh_shard_witnesses{region=~"$region", pool=~"$pool"}))`, "{{region}} {{state}}"}}},
		}},
		{title: "Nodes", panels: []panel{
			{title: "Nodes that answer", unit: units.Short, width: 12,
				queries: []query{{`sum by (region, pool, role) (max by (region, pool, shard, node, role) (cachemesh_shard_up{region=~"$region", pool=~"$pool"}))`, "{{region}} {{pool}} {{role}}"}}},
			{title: "Nodes in another role than they should be", unit: units.Short, width: 12,
				queries: []query{{`sum by (region, pool) (max by (region, pool, shard, node) (cachemesh_shard_role_mismatch{region=~"$region", pool=~"$pool"}))`, "{{region}} {{pool}}"}}},
		}},
	},
}
