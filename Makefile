# The commands of this repository. `make test` brings what it needs itself, or says what to install.
.DEFAULT_GOAL := help
.PHONY: help setup dev test lint bench bench-gateway bench-fold check-alerts fuzz test-vllm test-faults simulate

CARGO ?= cargo

help:
	@echo 'make dev     builds and starts everything on this machine (Ctrl-C stops it, the data stays in .tollgate)'
	@echo 'make test    runs every test, with real Kafka and ClickHouse processes'
	@echo 'make test-vllm   drives the real vLLM behind the gateway (fetches its CPU build: 6 GB)'
	@echo 'make test-faults  kills, stops, restores and doubles every part at random, a thousand times (an hour)'
	@echo 'make simulate   searches the protocol for an order of faults that breaks it (minutes)'
	@echo 'make lint    formatting, clippy and documentation, as the checks of a change run them'
	@echo 'make check-alerts   checks the rules for Prometheus, with promtool'
	@echo 'make bench   measures the gateway beside the bare simulator'
	@echo 'make bench-gateway  measures it beside nginx, LiteLLM and vllm-router'
	@echo 'make bench-fold     measures the fold beside its ceilings, and beside a plain consumer in Python'
	@echo 'make fuzz    runs each fuzz target for a minute, or FUZZ_SECONDS'
	@echo 'make setup   checks this machine and fetches Kafka, the ClickHouse engine and Redis into .tools'

setup:
	@deploy/local/tools.sh
	@deploy/local/kafka.sh
	@deploy/local/clickhouse.sh
	@deploy/local/redis.sh

# cargo gives its place to the binary, so Ctrl-C reaches it alone. Options: make dev ARGS='--gateway-port 9080'
dev: setup
	@$(CARGO) run --locked --package tollgate -- dev $(ARGS)

# The end-to-end tests start the binary as a user would, so it is built first. The house rules read the dependencies of
# every platform, offline; a build fetches only this platform's.
test: setup
	@deploy/local/clients.sh
	$(CARGO) fetch --locked
	$(CARGO) build --locked --package tollgate
	$(CARGO) test --locked --workspace --no-fail-fast $(ARGS)

# promtool comes with Debian's package prometheus.
check-alerts:
	promtool check config deploy/prometheus/prometheus.yml
	promtool test rules deploy/prometheus/alerts.test.yml

# Two real vLLM that generate and one that embeds, with tiny random models, on this machine's CPU.
test-vllm: setup
	@deploy/local/vllm.sh
	$(CARGO) build --locked --package tollgate
	$(CARGO) test --locked --package promises --test vllm -- --nocapture $(ARGS)

# An hour: twenty faults a minute on two processors. A shorter one: FAULTS=60 make test-faults. The same faults again: SEED=7 make test-faults
test-faults: setup
	$(CARGO) build --locked --package tollgate
	FAULTS=$${FAULTS:-1000} $(CARGO) test --locked --package promises --test rig -- --nocapture --test-threads 1 $(ARGS)

# The protocol, for ten minutes: SIMULATE_SECONDS=60 make simulate. A seed again: SIMULATE_ONE=everything:1234 make simulate
simulate:
	RUST_LOG=off $(CARGO) test --locked --release --package fold --lib -- --ignored --nocapture simulation::as_long_as_one_likes

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --workspace --no-deps --document-private-items

bench: setup
	$(CARGO) build --locked --release --package tollgate
	$(CARGO) bench --locked --package promises --bench gateway $(ARGS)

# Some ten minutes. A part of it: make bench-gateway ARGS='--only nginx,tollgate --phases plain,stream --rounds 2'
bench-gateway: setup
	@deploy/local/gateways.sh
	$(CARGO) build --locked --release --package tollgate
	$(CARGO) bench --locked --package promises --bench gateways -- $(ARGS)

# Some ten minutes. A part of it: make bench-fold ARGS='--phases speed --partitions 4 --events 400000'
bench-fold: setup
	@deploy/local/consumer.sh
	$(CARGO) build --locked --release --package tollgate
	$(CARGO) bench --locked --package promises --bench fold -- $(ARGS)

# Needs a C++ compiler. Each of the three targets runs for so long.
FUZZ_SECONDS ?= 60
fuzz:
	@services/gateway/fuzz/run.sh $(FUZZ_SECONDS)
