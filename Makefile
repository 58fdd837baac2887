# The only task runner. `make help` lists what there is; each target says what it needs and installs it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTEST := .venv/bin/pytest
# Two workers: the integration tests start servers, and the smallest machine we test on has two cores.
PYTEST_WORKERS ?= 2
PYTEST_ARGS ?=
# A file's tests stay on one worker, so that what its fixtures start is started once; files start in their order.
PYTEST_SPREAD := -n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder

# $(call whole-number,NAME,from 0): a recipe's first line, so that nothing is started over a value that is none. It may be unset.
define whole-number
@case '$($(1))' in *[!0-9]* $(if $(2),,| 0)) echo "$(1)=$($(1)): a whole number $(or $(2),above 0) is accepted" >&2; exit 2;; esac
endef

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 18

.PHONY: env
env: ## Make .venv from the lock (nothing to do: well under a second)
	@deploy/dev/env.sh

.PHONY: lock
lock: ## Refresh requirements/*.lock from pyproject.toml (UPGRADE=1: newest versions)
	@deploy/dev/lock.sh

.PHONY: proto
proto: env ## Generate the stubs, the descriptor set and the OpenAPI documents from api/protos
	@.venv/bin/python deploy/dev/proto.py
	@.venv/bin/python -m deploy.dev.openapi

.PHONY: docs
docs: env ## Write the pages of docs/ that are made from the code
	@.venv/bin/python deploy/dev/docs.py

.PHONY: schema
schema: env ## Write db/migrations/schema.sql from the migrations
	@.venv/bin/python -m penstock.store.schema

.PHONY: check
check: env ## Every gate that needs no server: format, lint, types, imports, protos, freshness
	@.venv/bin/python deploy/dev/check.py

.PHONY: format
format: env ## Format the code and apply the safe lint fixes
	@.venv/bin/ruff check --fix-only --quiet
	@.venv/bin/ruff format --quiet

.PHONY: test
test: env ## Install what the tests need (Slurm, the engine) and run all of them
	@deploy/dev/system-packages.sh test
	@# Side by side, for each waits for the network, the disk or one core most of the time.
	@.venv/bin/python deploy/engine/environment.py --progress & engine=$$!; \
	.venv/bin/python deploy/cluster/chroot.py & slurm=$$!; \
	.venv/bin/python -m deploy.cluster.apptainer || echo "WITHOUT APPTAINER: its test is skipped"; \
	wait $$slurm || echo "WITHOUT SLURM 26.05: its lane of the contract suite is skipped"; \
	wait $$engine
	@$(PYTEST) $(PYTEST_SPREAD) -ra $(PYTEST_ARGS) tests

.PHONY: test-fast
test-fast: env ## The tests that start no server: unit, stories, properties
	@$(PYTEST) $(PYTEST_SPREAD) -ra $(PYTEST_ARGS) $(wildcard tests/unit tests/stories tests/property)

.PHONY: sim
sim: env ## Play the simulation: fresh seeds until stopped (SECONDS=...: for so long), or one again (SEED=...)
	@SEED=$(SEED) SECONDS_TO_PLAY=$(SECONDS) .venv/bin/python -m tests.simulation.seeds

.PHONY: sim-day
sim-day: env ## Play a day of 50 deployments: walltime, drains, a maintenance, preemptions (some minutes)
	@PENSTOCK_DAY=1 $(PYTEST) -n 0 -s -k test_a_day tests/simulation/test_day.py

.PHONY: sim-year
sim-year: env ## Play a year of one controller, a line a month: neither rows nor memory may grow (10 minutes)
	@PENSTOCK_YEAR=1 $(PYTEST) -n 0 -s -k test_a_year tests/simulation/test_long_run.py

.PHONY: fuzz
fuzz: env ## Fuzz both REST APIs and the gRPC port (SECONDS=600 each; SEED=...: that seed again)
	$(call whole-number,SECONDS)
	$(call whole-number,SEED,from 0)
	@deploy/dev/system-packages.sh test
	@PENSTOCK_FUZZ_SECONDS=$(or $(SECONDS),600) PENSTOCK_FUZZ_SEED=$(SEED) $(PYTEST) -n 0 -s -v tests/fuzz

.PHONY: quickstart
quickstart: env ## A cluster, Penstock and a model on this machine; ends with a streamed answer
	@deploy/dev/system-packages.sh quickstart
	@.venv/bin/python deploy/dev/quickstart.py up

.PHONY: quickstart-down
quickstart-down: env ## Stop what `make quickstart` started
	@.venv/bin/python deploy/dev/quickstart.py down

.PHONY: bench-latency
bench-latency: env ## Apply to accepted, ready to routable, dead to unroutable, on a real cluster
	@deploy/dev/system-packages.sh quickstart
	@.venv/bin/python -m tests.bench.latency

.PHONY: bench-controller
bench-controller: env ## 10,000 replicas: ticks, memory and submissions, to a fake Slurm and to a real one
	@deploy/dev/system-packages.sh quickstart
	@.venv/bin/python -m tests.bench.controller

.PHONY: bench-gateway
bench-gateway: env ## The front door beside direct and beside other routers: CPU, latency, streams (ROUNDS=3)
	$(call whole-number,ROUNDS)
	@deploy/dev/system-packages.sh bench
	@.venv/bin/python -m tests.bench.gateway --rounds $(or $(ROUNDS),3) --only "$(ONLY)"

.PHONY: bench-affinity
bench-affinity: env ## What it costs Envoy to find the replica that a request belongs to (ROUNDS=3)
	$(call whole-number,ROUNDS)
	@deploy/dev/system-packages.sh bench
	@.venv/bin/python -m tests.bench.affinity --rounds $(or $(ROUNDS),3)

.PHONY: bench-runtime
bench-runtime: env ## Tokens a second over gRPC from a real vLLM, beside its own HTTP server
	@deploy/dev/system-packages.sh bench
	@.venv/bin/python -m tests.bench.runtime

.PHONY: chaos
chaos: env ## Kill everything again and again (KILLS=100 SEED=1); the report is kept in .chaos
	$(call whole-number,KILLS)
	$(call whole-number,AT_MOST_S)
	$(call whole-number,SEED,from 0)
	@deploy/dev/system-packages.sh quickstart
	@.venv/bin/python -m tests.chaos.run

.PHONY: clean
clean: ## Remove what make built here (the engine and the caches outside the tree stay)
	@rm -rf .venv .cache dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
