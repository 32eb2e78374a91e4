// Package observability holds what a Prometheus needs to watch a mesh: what to scrape, what to record, when to alert. Its
// folder has Grafana's side, too: dashboards (package dashboards writes them as code) and their provisioning.
//
// It runs nothing and serves nothing; the demo writes these files into its folder.
package observability

import (
	"embed"
	"io/fs"
)

//go:embed prometheus/*.yml
var files embed.FS

// Prometheus is prometheus.yml and the rule files that it names. Its targets are the user's: see the head of prometheus.yml.
func Prometheus() fs.FS {
	dir, err := fs.Sub(files, "prometheus")
	if err != nil {
		panic(err) // the folder is part of the program
	}
	return dir
}
