package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/redis/go-redis/v9/logging"
	"github.com/spf13/cobra"

	"github.com/cachemesh/cachemesh/examples/twitter/app"
	"github.com/cachemesh/cachemesh/examples/twitter/store"
	"github.com/cachemesh/cachemesh/examples/twitter/workload"
)

type serveOptions struct {
	listen, region, redis, db, passwordFile string
	events, loaderTokenFile                 string
	peers                                   map[string]string
	latency, lag                            time.Duration
	noCache, noAutoPipeline, coherent       bool
}

func serveCommand() *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:     "serve --region NAME --db URL",
		Short:   "Serve the HTTP API of one region",
		Example: "  twitter serve --region us-east --redis 127.0.0.1:6379 --db sqlite:twitter.db --peers eu-west=http://127.0.0.1:8082",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.lag < 0 || o.lag > time.Minute {
				return errors.New("--db-replica-lag: 0s to 1m")
			}
			peers, err := parsePeers(o.peers, o.region)
			if err != nil {
				return err
			}
			if _, err := parseURL("--events", o.events); o.events != "" && err != nil {
				return err
			}
			return failed(serve(cmd.Context(), o, peers, slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))))
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.listen, "listen", "127.0.0.1:8081", "address of the HTTP API")
	f.StringVar(&o.region, "region", "", "region that this app answers for")
	f.StringVar(&o.redis, "redis", "127.0.0.1:6379", "the cache: HOST:PORT or unix:PATH")
	f.StringVar(&o.passwordFile, "redis-password-file", "", "file with the password for the cache")
	f.StringVar(&o.db, "db", "", "database: sqlite:PATH or postgres://...")
	f.StringVar(&o.events, "events", "", "URL that takes what happens, such as http://127.0.0.1:9902/v1/events of a cachemesh agent; what other regions' caches hold ahead is then left to who hears of it")
	f.StringVar(&o.loaderTokenFile, "loader-token-file", "", "file with the bearer token of those who may ask POST /internal/cache for what a cache is to hold; without it nobody may")
	f.StringToStringVar(&o.peers, "peers", nil, "apps of the regions: REGION=URL,...")
	f.DurationVar(&o.latency, "db-latency", 0, "sleep before each database read, to imitate a distant database")
	f.DurationVar(&o.lag, "db-replica-lag", 0, "read profiles as a replica of the database has them that lags so much, 0 to 1m")
	f.BoolVar(&o.coherent, "coherent", false, "the regions' caches are kept coherent: answer for the profiles of users of all regions")
	f.BoolVar(&o.noCache, "no-cache", false, "answer everything from the database")
	f.BoolVar(&o.noAutoPipeline, "no-autopipeline", false, "send each command to the cache on its own")
	cmd.MarkFlagRequired("region")
	cmd.MarkFlagRequired("db")
	return cmd
}

// parsePeers checks the URLs and leaves out the app's own region.
func parsePeers(peers map[string]string, own string) (map[string]*url.URL, error) {
	parsed := make(map[string]*url.URL)
	for region, text := range peers {
		u, err := parseURL("--peers: "+region, text)
		if err != nil {
			return nil, err
		}
		if region != own {
			parsed[region] = u
		}
	}
	return parsed, nil
}

func parseURL(what, text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("%s: %q is no URL such as http://127.0.0.1:8082", what, text)
	}
	return u, nil
}

func serve(ctx context.Context, o serveOptions, peers map[string]*url.URL, log *slog.Logger) error {
	db, err := store.Open(ctx, o.db, o.latency)
	if err != nil {
		return err
	}
	defer db.Close()
	db.Lag(o.lag)
	var cache *app.Cache
	if !o.noCache {
		logging.Disable() // go-redis tells of each failed dial; the cache itself logs a failure now and then
		password, err := readSecret("--redis-password-file", o.passwordFile)
		if err != nil {
			return err
		}
		cache, err = app.OpenCache(app.CacheOptions{Address: o.redis, Password: password, AutoPipeline: !o.noAutoPipeline, Log: log})
		if err != nil {
			return err
		}
		defer cache.Close()
	}
	token, err := readSecret("--loader-token-file", o.loaderTokenFile)
	if err != nil {
		return err
	}
	var events *app.Events
	if o.events != "" {
		to, err := parseURL("--events", o.events)
		if err != nil {
			return err
		}
		events = app.NewEvents(to, log)
		go events.Run(ctx)
	}
	a, err := app.New(ctx, app.Config{
		Region: o.region, Coherent: o.coherent, Peers: peers, Store: db, Cache: cache, Events: events, LoaderToken: token, Log: log,
		TTLs: app.TTLs{
			Timeline: workload.Default.Cluster(workload.Timeline).TTL,
			Profile:  workload.Default.Cluster(workload.Profile).TTL,
			Tweet:    workload.Default.Cluster(workload.TweetOf).TTL,
		},
	})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", o.listen)
	if err != nil {
		return fmt.Errorf("listen for the API: %w", err)
	}
	server := &http.Server{Handler: a, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	log.Info("serving", "region", o.region, "url", "http://"+listener.Addr().String())
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	log.Info("finishing what is under way")
	grace, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	return errors.Join(server.Shutdown(grace), a.Close(grace))
}

func readSecret(flag, file string) (string, error) {
	if file == "" {
		return "", nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("%s: %w", flag, err)
	}
	secret := strings.TrimRight(string(data), "\r\n")
	if secret == "" {
		return "", fmt.Errorf("%s: %s is empty", flag, file)
	}
	return secret, nil
}
