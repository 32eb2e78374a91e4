# Everything that is done with this repository. `make help` lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -X main.version=$(VERSION)
LINT := go tool -modfile=tools/lint/go.mod
# The tests share this machine's ports and processors with the programs that they start.
TESTFLAGS ?= -timeout 15m

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: tools
tools: ## install what is needed: Debian packages and, into .tools, Envoy
	@tools/install

.PHONY: consul
consul: ## build the Consul server into .tools: minutes once, then nothing
	@tools/install-consul

.PHONY: clients
clients: tools ## install the Redis clients that the tests run, into .tools
	@tools/install-clients

.PHONY: build
build: ## build bin/cachemesh and bin/twitter
	@go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/cachemesh ./examples/twitter

.PHONY: demo
demo: tools build $(if $(findstring consul,$(ARGS)),consul) ## run two regions under load; ARGS="--for 60s" and so on
	@bin/cachemesh demo $(ARGS)

.PHONY: test
test: tools consul clients check race deployment ## all checks and all tests, with the race detector

.PHONY: check
check: ## formatting, vet, staticcheck
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$unformatted" ] || { echo "run gofmt -w on:" $$unformatted; exit 1; }
	@go mod tidy -diff
	@go vet ./...
	@$(LINT) staticcheck ./...

.PHONY: race
race: tools consul clients ## the tests, with the race detector
	@go test -race $(TESTFLAGS) ./...

.PHONY: deployment
deployment: consul ## the tests of Dockerfile, docker-compose.yml, Helm chart and Kubernetes examples
	@cd deploy && go mod tidy -diff && go vet ./... && go test -count=1 ./... # its files lie outside of the module, so that no cache sees them change

.PHONY: golden
golden: ## rewrite golden files, generated pages and the schema, then look at the diff
	@go test ./mesh ./envoy ./inject ./observability/dashboards -update
	@cd deploy && go test . -update
	@go generate ./commands

.PHONY: proto
proto: ## generate reports/*.pb.go and regions/*.pb.go anew
	@go tool -modfile=tools/proto/go.mod buf generate --template tools/proto/buf.gen.yaml --path reports --path regions

.PHONY: vectors
vectors: tools ## record ring/testdata anew from the real Envoy
	@go run ./ring/record

.PHONY: fuzz
fuzz: ## fuzz the parsers and the ring, a minute each
	@go test -run '^$$' -fuzz FuzzLoad -fuzztime 60s ./mesh
	@go test -run '^$$' -fuzz FuzzManifests -fuzztime 60s -fuzzminimizetime 20x ./inject
	@go test -run '^$$' -fuzz FuzzFind -fuzztime 60s -fuzzminimizetime 20x ./ring
	@go test -run '^$$' -fuzz FuzzReadCommand -fuzztime 60s ./resp

SEEDS ?= 10000
.PHONY: sim
sim: ## simulate failures of every kind: SEEDS=10000 runs; a failing seed prints its trace
	@go run ./sim --seeds $(SEEDS)

.PHONY: mutants
mutants: ## plant bugs in shards/, one at a time: the simulator must find each
	@go run ./sim/mutants

.PHONY: bench
bench: tools build ## run every benchmark and rewrite the README's table of results
	@go run ./bench all

.PHONY: day
day: tools ## a day of two regions in minutes, with warming and without (16 min): checks it and writes docs/day.html
	@go run ./bench day $(ARGS)

.PHONY: chaos
chaos: tools ## kill everything, by seed, while a checker looks (20 min), then the same with Pub/Sub; ARGS="--for 2m --rate 300 --seed 7" and so on
	@go run ./bench chaos $(ARGS)

.PHONY: handoffs
handoffs: tools ## add and remove shards while something fails, by seed (20 min); ARGS="--rounds 20 --seed 7 --fault donor_killed"
	@go run ./bench handoffs $(ARGS)

.PHONY: vuln
vuln: ## known vulnerabilities in what is used; asks the Go vulnerability database
	@$(LINT) govulncheck ./...

.PHONY: clean
clean: ## remove what was built and the demo's files, not the installed tools
	@rm -rf bin .demo
