# The targets of this repository. The work itself is done by scripts/.
#
# PG_CONFIG selects the PostgreSQL: make test PG_CONFIG=/usr/lib/postgresql/17/bin/pg_config
# Empty means PostgreSQL 15 where Debian puts it, else 16 to 18 there, else the pg_config in PATH (scripts/common.sh).
PG_CONFIG ?=
export PG_CONFIG

# make soak MINUTES=30
MINUTES ?= 30

.PHONY: help demo demo-cluster live test test-all test-gateway memcheck soak lint all install gateway package bench bench-gateway clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## build, start a private PostgreSQL, and watch three users come and go
	@scripts/demo

demo-cluster: ## a primary is killed while people watch; its standby takes over, and they stay; then a second server
	@scripts/demo-cluster

live: ## build, start a private PostgreSQL and the gateway, and serve a page to open in two windows
	@scripts/live

test: ## everything: lint, unit, in-server, SQL, isolation and client tests, and the gateway with real clients
	@scripts/test

test-all: ## the same on PostgreSQL 15, 16, 17 (with assertions) and 18, and pg_upgrade; builds 17 and 18 once
	@scripts/test-all

test-gateway: ## the gateway's tests, with real clients from npm and Chromium; the extension that is installed
	@scripts/test-gateway

memcheck: ## the shared-memory core under valgrind and a model checker
	@scripts/memcheck

soak: ## MINUTES of random steps and of load with kills: nothing may grow
	@scripts/soak $(MINUTES)

lint: ## formatting, clippy, shellcheck, and whether released upgrade scripts are untouched
	@scripts/deps --test
	@scripts/lint

all: ## only build
	@scripts/deps
	@scripts/build

install: ## a release build, into the PostgreSQL of PG_CONFIG
	@scripts/deps
	@scripts/install release

gateway: ## presence-gateway, for browsers: gateway/target/release/presence-gateway
	@scripts/test-gateway build

package: ## a directory tree, two .deb, and a zip for PGXN, under target/, looked at by lintian
	@scripts/deps $$(command -v dpkg >/dev/null && echo lintian)
	@scripts/package

bench: ## this extension, the hand-made rival and the floor, in one table
	@scripts/deps redis-server redis-tools
	@scripts/install release
	@benches/run

bench-gateway: ## thousands of clients of the gateway, in one table
	@scripts/deps
	@scripts/install release
	@scripts/bench-gateway

clean: ## remove everything that was built
	cargo clean
	cargo clean --manifest-path gateway/Cargo.toml
