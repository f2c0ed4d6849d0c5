# make            this list
# make test       everything, with the real PostgreSQL, Kafka, Chromium and kcat, which it finds or installs
.DEFAULT_GOAL := help
.PHONY: help run build short test soak deploy bench lint fmt mutants servers servers-stop

TOOL    := go tool -modfile=tools/go.mod
SERVERS := /var/tmp/pizzaflow-servers-$(shell id -u)

help: ## list what make can do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## start the pizzeria: shop, broker and database in one process
	go run ./cmd/pizza

build: ## build bin/pizza, one static file
	CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o bin/pizza ./cmd/pizza

short: ## the tests that need nothing but Go
	go test ./...

test: ## the whole check: format, vet, lint, and every test with the race detector on real servers
	@tools/test

soak: ## what takes long: FUZZ requests (5000) of each kind and version to the embedded broker, SEED (1) chooses which
	PIZZA_TEST_FUZZ=$(or $(FUZZ),5000) PIZZA_TEST_SEED=$(or $(SEED),1) go test ./kafka/embedded -run 'TestNoRequestEndsTheBroker$$' -count=1 -v -timeout 0

deploy: build ## try image, package, units, chart and Compose file with the tools that they are for
	@tools/deploy/check bin/pizza

# BENCH=quick takes 6 minutes instead of 17; PARTS=relay,latency,intake,consumer,chain,flow,provider picks parts. Only a full run writes the file.
bench: ## measure everything beside what others use, and write docs/benchmarks.md
	@cd bench && go build -o ../bin/bench .
	@exec bin/bench -size "$(or $(BENCH),full)" -run "$(PARTS)" -out "$(if $(BENCH)$(PARTS),,docs/benchmarks.md)"

lint: ## vet and golangci-lint
	go vet -tags synctests ./...
	$(TOOL) golangci-lint run
	cd bench && go vet ./... && go tool -modfile=../tools/go.mod golangci-lint run

fmt: ## format every Go file as lint wants it
	$(TOOL) golangci-lint fmt

mutants: ## take out one protection at a time and see a test fail; ONLY=regexp chooses. Slow
	cd tools && go run ./mutants -only '$(ONLY)'

# eval "$(make -s servers)" sets what it prints.
servers: servers-stop ## start an empty PostgreSQL and Kafka for your own tries and print how to reach them
	@mkdir -p $(SERVERS)
	@url=$$(e2e/servers/servers postgres $(SERVERS)/postgres) && echo "export DATABASE_URL='$$url'"
	@brokers=$$(e2e/servers/servers kafka $(SERVERS)/kafka) && echo "export KAFKA_BROKERS='$$brokers'"

servers-stop: ## stop them and delete their data
	@if [ -d $(SERVERS)/kafka ]; then e2e/servers/servers kafka-stop $(SERVERS)/kafka; fi
	@if [ -d $(SERVERS)/postgres ]; then e2e/servers/servers postgres-stop $(SERVERS)/postgres immediate; fi
	@rm -rf $(SERVERS)
