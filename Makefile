# The commands of this repository. `make test` brings what it needs itself, or says what to install.
.DEFAULT_GOAL := help
.PHONY: help setup dev test lint bench

CARGO ?= cargo

help:
	@echo 'make dev     not built yet: says what runs today'
	@echo 'make test    runs every test, with real Kafka and ClickHouse processes'
	@echo 'make lint    formatting, clippy and documentation, as the checks of a change run them'
	@echo 'make bench   measures the gateway beside the bare simulator, and the fold'
	@echo 'make setup   checks this machine and fetches Kafka and the ClickHouse engine into .tools'

setup:
	@deploy/local/tools.sh
	@deploy/local/kafka.sh
	@deploy/local/clickhouse.sh

# A system needs the gateway, the fold and billing. Until they stand, this fails in plain words rather than start a part.
dev:
	@echo 'make dev: the gateway, the fold and billing are not built yet, so there is no system to start.' >&2
	@echo 'What runs today: cargo run --package tollgate -- embedded-vllm --listen 127.0.0.1:8000 --model llama-3.1-8b' >&2
	@exit 1

# The end-to-end tests start the binary as a user would, so it is built first. The house rules read the dependencies of
# every platform, offline; a build fetches only this platform's.
test: setup
	$(CARGO) fetch --locked
	$(CARGO) build --locked --package tollgate
	$(CARGO) test --locked --workspace --no-fail-fast $(ARGS)

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --workspace --no-deps --document-private-items

bench: setup
	$(CARGO) build --locked --release --package tollgate
	$(CARGO) bench --locked --package promises $(ARGS)
