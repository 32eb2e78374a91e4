package dashboards

import "github.com/grafana/grafana-foundation-sdk/go/units"

// routing answers whether every sidecar has the routes that it is to have.
var routing = page{
	uid: "cachemesh-routing", title: "cachemesh: routing and xDS", about: "Whether every sidecar has the routes that it is to have, and from where.",
	variables: []variable{byRegion},
	rows: []row{
		{title: "Control planes", panels: []panel{
			{title: "Control planes that answer", unit: units.Short, number: true, width: 6,
				queries: []query{{`sum by (region) (up{job="cachemesh-controlplane", region=~"$region"})`, "{{region}}"}}},
			{title: "Newest configuration in effect", about: "1: yes. 0: an older one had to stay, and status says why.", unit: units.Short, number: true, width: 6,
				queries: []query{{`min by (region) (cachemesh_controlplane_config_valid{region=~"$region"})`, "{{region}}"}}},
			{title: "Push, p99", about: "From a new configuration, or a connection, until a sidecar has acknowledged all of it; of the last hour.", unit: units.Seconds, number: true, width: 6,
				queries: []query{{`histogram_quantile(0.99, sum by (le, region) (increase(cachemesh_controlplane_push_seconds_bucket{region=~"$region"}[1h])))`, "{{region}}"}}},
			{title: "Rejections", about: "Of the last hour.", unit: units.Short, number: true, width: 6,
				queries: []query{{`sum by (region) (increase(cachemesh_controlplane_xds_nacks_total{region=~"$region"}[1h]))`, "{{region}}"}}},
			{title: "Configurations read", unit: units.Short, width: 8,
				queries: []query{{`sum by (region, result) (increase(cachemesh_controlplane_config_updates_total{region=~"$region"}[5m]))`, "{{region}} {{result}}"}}},
			{title: "Pushes acknowledged", unit: units.OpsPerSecond, width: 8,
				queries: []query{{`sum by (region) (rate(cachemesh_controlplane_push_seconds_count{region=~"$region"}[$__rate_interval]))`, "{{region}}"}}},
			{title: "Sent to sidecars", unit: units.BytesPerSecondIEC, width: 8,
				queries: []query{{`sum by (region, type) (rate(cachemesh_controlplane_xds_sent_bytes_total{region=~"$region"}[$__rate_interval]))`, "{{region}} {{type}}"}}},
			{title: "Resources sent", unit: units.OpsPerSecond, width: 8,
				queries: []query{{`sum by (region, type) (rate(cachemesh_controlplane_xds_resources_sent_total{region=~"$region"}[$__rate_interval]))`, "{{region}} {{type}}"}}},
			{title: "Processor time of control planes", about: "1 is one processor.", unit: units.Short, width: 8,
				queries: []query{{`sum by (region) (rate(process_cpu_seconds_total{job="cachemesh-controlplane", region=~"$region"}[$__rate_interval]))`, "{{region}}"}}},
			{title: "Memory of control planes", unit: units.BytesIEC, width: 8,
				queries: []query{{`sum by (region) (process_resident_memory_bytes{job="cachemesh-controlplane", region=~"$region"})`, "{{region}}"}}},
		}},
		{title: "Sidecars", panels: []panel{
			{title: "Sidecars by state", about: "SYNCED has everything, STALE lacks something, NACK has refused something, GONE was connected in the last ten minutes.", unit: units.Short, width: 8,
				queries: []query{{`sum by (region, state) (cachemesh_controlplane_sidecars{region=~"$region"})`, "{{region}} {{state}}"}}},
			{title: "Sidecars by source", about: "Where their resources come from now: a control plane, or what they saved to disk.", unit: units.Short, width: 8,
				queries: []query{{`sum by (region, source) (cachemesh_sidecar_xds_source{region=~"$region"})`, "{{region}} {{source}}"}}},
			{title: "Sidecars by control plane", unit: units.Short, width: 8,
				queries: []query{{`sum by (region, control_plane) (cachemesh_sidecar_xds_connected{region=~"$region"})`, "{{region}} {{control_plane}}"}}},
			{title: "Sidecars by version of their resources", about: "One line a region is what it should be, save for the seconds of a change.", unit: units.Short, width: 8,
				queries: []query{{`count by (region, version) (cachemesh_sidecar_xds_version_info{region=~"$region"})`, "{{region}} {{version}}"}}},
			{title: "Rejections", unit: units.OpsPerSecond, width: 8,
				queries: []query{{`sum by (region, type) (rate(cachemesh_sidecar_xds_nacks_total{region=~"$region"}[$__rate_interval]))`, "{{region}} {{type}}"}}},
			{title: "Time since the last change", about: "Since Envoy last acknowledged one, or since its agent started.", unit: units.Seconds, width: 8,
				queries: []query{{`max by (region) (cachemesh_sidecar_xds_age_seconds{region=~"$region"})`, "{{region}} oldest"}, {`min by (region) (cachemesh_sidecar_xds_age_seconds{region=~"$region"})`, "{{region}} newest"}}},
			{title: "Sidecars that answer", unit: units.Short, width: 8,
				queries: []query{{`sum by (region) (up{job="cachemesh-sidecar", region=~"$region"})`, "{{region}} agents"}, {`sum by (region) (cachemesh_sidecar_envoy_up{region=~"$region"})`, "{{region}} Envoys"}}},
			{title: "Envoy restarts", about: "Of the last ten minutes.", unit: units.Short, width: 8,
				queries: []query{{`sum by (region) (increase(region_sidecar:cachemesh_sidecar_envoy_restarts:sum{region=~"$region"}[10m]))`, "{{region}}"}}},
			{title: "Sidecars by version", about: "Of the program.", unit: units.Short, width: 8,
				queries: []query{{`count by (region, component, version) (cachemesh_build_info{region=~"$region"})`, "{{region}} {{component}} {{version}}"}}},
		}},
	},
}
