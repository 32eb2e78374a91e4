package dashboards

import "github.com/grafana/grafana-foundation-sdk/go/units"

// overview answers whether applications are served well.
var overview = page{
	uid: "cachemesh-overview", title: "cachemesh: overview", about: "Whether applications are served well, by region.",
	variables: []variable{byRegion, byPool},
	rows: []row{
		{title: "Now", panels: []panel{
			{title: "Requests", about: "Commands that applications send to their sidecars, a second.", unit: units.RequestsPerSecond, number: true, width: 6,
				queries: []query{{`sum by (region) (region_command:envoy_redis_command:rate1m{region=~"$region"})`, "{{region}}"}}},
			{title: "Hit rate", about: "Look-ups that found their key, as Redis counts.", unit: units.PercentUnit, number: true, width: 6,
				queries: []query{{`region:cachemesh_shard_hits:ratio1m{region=~"$region"}`, "{{region}}"}}},
			{title: "Errors", about: "Commands that failed, of all commands.", unit: units.PercentUnit, number: true, width: 6,
				queries: []query{{`region:envoy_redis_command_error:ratio1m{region=~"$region"}`, "{{region}}"}}},
			{title: "Sidecars with the newest resources", unit: units.Short, number: true, width: 6,
				queries: []query{{`sum by (region) (cachemesh_controlplane_sidecars{region=~"$region", state="SYNCED"})`, "{{region}}"}}},
		}},
		{title: "Requests", panels: []panel{
			{title: "Requests by command", unit: units.RequestsPerSecond, width: 8,
				queries: []query{{`sum by (command) (region_command:envoy_redis_command:rate1m{region=~"$region"})`, "{{command}}"}}},
			{title: "Requests by pool", about: "Requests that Envoys send to shards; one with several keys, such as MGET, is one a key.", unit: units.RequestsPerSecond, width: 8,
				queries: []query{{`sum by (region, pool) (region_pool_shard:envoy_cluster_endpoint_rq:rate1m{region=~"$region", pool=~"$pool"})`, "{{region}} {{pool}}"}}},
			{title: "Errors", about: "Commands that failed because a shard did not answer in time or at all. What a shard itself refuses is not among them.", unit: units.RequestsPerSecond, width: 8,
				queries: []query{{`sum by (region) (region_command:envoy_redis_command_error:rate1m{region=~"$region"})`, "{{region}}"}}},
			{title: "Connections of applications", unit: units.Short, width: 8,
				queries: []query{{`sum by (region, envoy_redis_prefix) (envoy_redis_downstream_cx_active{region=~"$region"})`, "{{region}} {{envoy_redis_prefix}}"}}},
			{title: "Traffic of applications", unit: units.BytesPerSecondIEC, width: 8,
				queries: []query{
					{`sum by (region) (rate(envoy_redis_downstream_cx_rx_bytes_total{region=~"$region"}[$__rate_interval]))`, "{{region}} received"},
					{`sum by (region) (rate(envoy_redis_downstream_cx_tx_bytes_total{region=~"$region"}[$__rate_interval]))`, "{{region}} sent"},
				}},
			{title: "Memory of Envoy", about: "The most that one sidecar takes.", unit: units.BytesIEC, width: 8,
				queries: []query{{`max by (region) (envoy_server_memory_physical_size{region=~"$region"})`, "{{region}}"}}},
		}},
		{title: "Latency", panels: []panel{
			{title: "Commands as applications see them", about: "From the command's arrival at Envoy to its reply.", unit: units.Seconds, width: 8,
				queries: []query{
					{`histogram_quantile(0.5, sum by (le, region) (rate(envoy_redis_command_latency_bucket{region=~"$region"}[$__rate_interval]))) / 1e6`, "{{region}} p50"},
					{`histogram_quantile(0.99, sum by (le, region) (rate(envoy_redis_command_latency_bucket{region=~"$region"}[$__rate_interval]))) / 1e6`, "{{region}} p99"},
				}},
			{title: "p99 by command", unit: units.Seconds, width: 8,
				queries: []query{{`histogram_quantile(0.99, sum by (le, command) (rate(envoy_redis_command_latency_bucket{region=~"$region"}[$__rate_interval]))) / 1e6`, "{{command}}"}}},
			{title: "Shards as Envoys see them, p99", about: "From Envoy's request to a shard to the reply.", unit: units.Seconds, width: 8,
				queries: []query{{`histogram_quantile(0.99, sum by (le, region, pool) (rate(envoy_cluster_redis_cluster_upstream_commands_upstream_rq_time_bucket{region=~"$region", pool=~"$pool"}[$__rate_interval]))) / 1e6`, "{{region}} {{pool}}"}}},
		}},
		{title: "Cache", panels: []panel{
			{title: "Hit rate by region", unit: units.PercentUnit, width: 8,
				queries: []query{{`region:cachemesh_shard_hits:ratio1m{region=~"$region"}`, "{{region}}"}}},
			{title: "Hit rate by pool", unit: units.PercentUnit, width: 8,
				queries: []query{{`region_pool:cachemesh_shard_hits:ratio1m{region=~"$region", pool=~"$pool"}`, "{{region}} {{pool}}"}}},
			{title: "Hit rate by shard", unit: units.PercentUnit, width: 8,
				queries: []query{{`region_pool_shard:cachemesh_shard_hits:ratio1m{region=~"$region", pool=~"$pool"}`, "{{region}} {{shard}}"}}},
			{title: "Memory of primaries", unit: units.BytesIEC, width: 8,
				queries: []query{{`sum by (region, pool) (region_pool_shard:cachemesh_shard_memory_bytes:max{region=~"$region", pool=~"$pool"})`, "{{region}} {{pool}}"}}},
			{title: "Evictions", about: "Keys that went for want of memory.", unit: units.OpsPerSecond, width: 8,
				queries: []query{{`sum by (region, pool) (region_pool_shard:cachemesh_shard_evictions:rate1m{region=~"$region", pool=~"$pool"})`, "{{region}} {{pool}}"}}},
			{title: "Expirations", about: "Keys whose time to live ended.", unit: units.OpsPerSecond, width: 8,
				queries: []query{{`sum by (region, pool) (region_pool_shard:cachemesh_shard_expirations:rate1m{region=~"$region", pool=~"$pool"})`, "{{region}} {{pool}}"}}},
		}},
	},
}
