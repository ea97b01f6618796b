# `make demo` and `make test` are all a newcomer needs; `make help` lists the rest.
.DEFAULT_GOAL := help
.PHONY: help demo dev drill chaos test bench bench-peers growth emulators mutants lint dist

help: ## what there is
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

demo: ## the whole job on this machine: emit, break, kill, reconcile
	cargo run --release --bin loadtest -- demo

# Not optimised: it compiles in a third of the time, and people are slower than it.
dev: ## bus, worker, a stand-in for Amberflo and the control API, until Ctrl-C; options: make dev ARGS=--help
	cargo run --bin loadtest -- dev $(ARGS)

drill: ## breaks one thing in each of many deployments: do the right alerts fire, and lead to it? 4 minutes
	./infra/observability/setup.sh && ./loadtest/emulators/setup.sh && cargo run --bin loadtest -- drill $(ARGS)

chaos: ## everything fails at random in two deployments for 5 minutes, audited; options: make chaos ARGS=--help
	./loadtest/emulators/setup.sh && cargo run --bin loadtest -- chaos $(ARGS)

test: ## every suite; the last lines list what ran and what could not
	./.ci/test

bench: ## measurements: events per CPU-second, memory, durable PutEvents, the control API
	cargo build --release --bin control-api
	cargo build --release --features control-api/lambda --bin control-api-lambda
	cargo run --release --bin loadtest -- bench $(ARGS)

bench-peers: ## the same beside what users would pick instead: SDK, one POST per event, a KCL port; 40 minutes
	./loadtest/peers/setup.sh && ./loadtest/emulators/setup.sh && cargo build --release --bin loadtest
	./target/release/loadtest bench-peers $(ARGS)

growth: ## how cost grows with shards, tenants, dedup keys, batches, latency, outages: charts; 55 minutes, or ARGS=--quick
	./loadtest/emulators/setup.sh && cargo run --release --bin loadtest -- growth $(ARGS)

emulators: ## Kinesis, DynamoDB, SQS and Secrets Manager on this machine, until Ctrl-C
	./loadtest/emulators/setup.sh && cargo run --release --bin emulators

mutants: ## plants bugs one by one; the tests in paused time must catch each
	ingest-worker/tests/mutants/run.sh

dist: ## the zips of the Lambda functions, in infra/assets
	python3 infra/dist/build.py

lint: ## formatting, clippy, docs, dependencies
	./.ci/lint
