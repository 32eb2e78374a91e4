package main

import (
	"cmp"
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"text/template"
	"time"

	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/demo"
	"github.com/cachemesh/cachemesh/envoy"
	"github.com/cachemesh/cachemesh/sidecar"
)

//go:embed clients/*.tmpl
var clientTemplates embed.FS

// clientLibrary is a Redis client of which we know what it needs to be set.
type clientLibrary struct {
	language, name string
	version        string // with which the program was run
	protocol       int    // of the listener that the program uses
	template       string // in clients/
	run            string // who has run the program
}

const (
	byTheTests = "by the tests"
	byHand     = "by hand, not by the tests"
)

// clientLibraries has the first of each language that client-config prints unless told otherwise.
var clientLibraries = []clientLibrary{
	{"go", "go-redis", "9.23.0", 3, "go-redis.go.tmpl", byTheTests},
	{"go", "rueidis", "1.0.79", 3, "rueidis.go.tmpl", byTheTests},
	{"python", "redis-py", "8.1.0", 3, "redis-py.py.tmpl", byTheTests},
	{"node", "ioredis", "6.0.0", 3, "ioredis.js.tmpl", byTheTests},
	{"node", "node-redis", "6.3.1", 3, "node-redis.js.tmpl", byTheTests},
	{"java", "lettuce", "7.7.0.RELEASE", 3, "lettuce.java.tmpl", byHand},
	{"java", "jedis", "8.0.2", 3, "jedis.java.tmpl", byHand},
}

// clientConfig is what `client-config -o json` prints.
type clientConfig struct {
	Language   string          `json:"language"`
	Sidecar    string          `json:"sidecar"` // whose ports these are
	Redis      string          `json:"redis"`
	RedisRESP3 string          `json:"redis_resp3"`
	Clients    []clientProgram `json:"clients"`
}

// clientProgram is one client's part of it.
type clientProgram struct {
	Client   string `json:"client"`
	Version  string `json:"version"`
	Protocol int    `json:"protocol"` // 2 or 3, for RESP2 or RESP3
	Address  string `json:"address"`
	Run      string `json:"run"` // who has run the program, and so knows that it works
	Program  string `json:"program"`
}

func newClientConfig() *cobra.Command {
	var out output
	var language, name, dir, url string
	languages := []string{"go", "python", "node", "java"}
	cmd := &cobra.Command{
		Use:   "client-config --lang go|python|node|java",
		Short: "Print a program that reaches a sidecar, with the port and options that work",
		Long: `Print a small program that reaches a sidecar, with the port and the options that work for the client, ready to paste.

The ports are those of the sidecar that --sidecar names, or of a demo's first; without either, those that a sidecar has unless
told otherwise. With -o json, every client of the language and both ports.`,
		Example: `  cachemesh client-config --lang python > app.py
  cachemesh client-config --lang go --client rueidis
  cachemesh client-config --lang node --sidecar http://127.0.0.1:9902 -o json`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if language == "" {
				return usage("--lang is missing: name %s", oneOf(languages))
			}
			if dir != "" && url != "" {
				return usage("--dir and --sidecar name two places: give one")
			}
			whose, at, err := sidecarAddresses(cmd.Context(), dir, url)
			if err != nil {
				return err
			}
			c, err := configureClients(language, name, whose, at)
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), c, func(w io.Writer) {
				chosen, others := c.Clients[0], c.Clients[1:]
				fmt.Fprint(w, chosen.Program)
				fmt.Fprintf(cmd.ErrOrStderr(), "# %s %s at %s, RESP%d (%s); this program was run %s\n",
					chosen.Client, chosen.Version, chosen.Address, chosen.Protocol, whose, chosen.Run)
				for _, other := range others {
					fmt.Fprintf(cmd.ErrOrStderr(), "# there is another: --client %s\n", other.Client)
				}
			})
		},
	}
	f := cmd.Flags()
	f.Var(&choice{value: &language, of: languages}, "lang", "language of the program: "+oneOf(languages))
	f.StringVar(&name, "client", "", "client library, such as "+clientLibraries[1].name+" (default: the first known of the language)")
	f.StringVar(&dir, "dir", "", "folder of a running demo (default "+defaultDir+", if a mesh runs from it)")
	f.StringVar(&url, "sidecar", "", "URL of a sidecar's metrics address, such as http://127.0.0.1:9902")
	cmd.RegisterFlagCompletionFunc("lang", cobra.FixedCompletions(languages, cobra.ShellCompDirectiveNoFileComp))
	cmd.MarkFlagDirname("dir")
	out.register(cmd, "table", "json")
	return cmd
}

// sidecarAddresses finds the addresses of a sidecar and says whose they are.
func sidecarAddresses(ctx context.Context, dir, url string) (whose string, at envoy.Addresses, err error) {
	if url != "" {
		urls, err := checkURLs("--sidecar", []string{url})
		if err != nil {
			return "", at, err
		}
		s, err := sidecarStatus(ctx, urls[0]+"/status")
		if err != nil {
			return "", at, fmt.Errorf("--sidecar: no sidecar tells where it is reached: %w", err)
		}
		return "sidecar " + s.Name, s.Addresses, nil
	}
	e, err := demo.ReadEndpoints(cmp.Or(dir, defaultDir))
	switch {
	case err == nil && len(e.Regions) > 0 && len(e.Regions[0].Sidecars) > 0:
		s := e.Regions[0].Sidecars[0]
		return "sidecar " + s.Name, envoy.Addresses{Redis: s.Redis, RedisRESP3: s.RedisRESP3, Socket: s.RedisSocket}, nil
	case dir != "":
		return "", at, cmp.Or(err, fmt.Errorf("the mesh in %s has no sidecar", dir))
	}
	return "a sidecar that nothing else was told", envoy.DefaultAddresses, nil
}

func sidecarStatus(ctx context.Context, page string) (s sidecar.Status, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, page, nil)
	if err != nil {
		return s, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return s, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return s, fmt.Errorf("%s answers %s", page, response.Status)
	}
	if err := json.NewDecoder(response.Body).Decode(&s); err != nil {
		return s, fmt.Errorf("%s: %w", page, err)
	}
	return s, nil
}

// configureClients fills in the programs of a language, or of one client of it.
func configureClients(language, name, whose string, at envoy.Addresses) (clientConfig, error) {
	c := clientConfig{Language: language, Sidecar: whose, Redis: at.Redis, RedisRESP3: at.RedisRESP3}
	templates, err := template.ParseFS(clientTemplates, "clients/*.tmpl")
	if err != nil {
		return c, err
	}
	var names []string
	for _, library := range clientLibraries {
		if library.language != language {
			continue
		}
		names = append(names, library.name)
		if name != "" && library.name != name {
			continue
		}
		p := clientProgram{Client: library.name, Version: library.version, Protocol: library.protocol, Address: at.Redis, Run: library.run}
		if p.Protocol == 3 {
			p.Address = at.RedisRESP3
		}
		host, port, err := net.SplitHostPort(p.Address)
		if err != nil {
			return c, fmt.Errorf("%s has no TCP port for RESP%d: give it one with --redis and --redis-resp3, or use its Unix sockets", whose, p.Protocol)
		}
		_, portRESP2, _ := net.SplitHostPort(at.Redis)
		var program strings.Builder
		if err := templates.ExecuteTemplate(&program, library.template, struct {
			clientProgram
			Host, Port, PortRESP2 string
		}{p, host, port, portRESP2}); err != nil {
			return c, err
		}
		p.Program = program.String()
		c.Clients = append(c.Clients, p)
	}
	if len(c.Clients) == 0 {
		return c, usage("--client %q is not known for %s: want %s", name, language, oneOf(names))
	}
	return c, nil
}
