# `make demo` and `make test` are all a stranger needs; both install what they need, say so, and may be run again.
#
#   make demo          the main job on real data (KEEP=1 leaves the platform up)
#   make test          unit, integration and end-to-end tests
#   make lint          formatting, clippy, dependency directions, UI types
#   make conformance   the official clients against slipway and the originals
#   make ui-test       the UI in a real browser
#   make book          the guide, and its commands
#   make bench         side by side with MLflow and MLServer

.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

SLIPWAY := target/release/slipway
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/slipway
PEERS := $(CACHE)/peers
DEMO := .slipway-demo

.PHONY: help demo test lint conformance ui ui-test book bench bench-track bench-serve binary tools clean

help:
	@sed -n 's/^#   //p' Makefile

tools:
	@scripts/tools.sh

web/node_modules/.ready: web/package-lock.json
	@echo "installing the UI's build tools (npm ci in web/)"
	cd web && npm ci --no-audit --no-fund --silent
	@touch $@

web/dist/index.html: web/node_modules/.ready $(shell find web/src web/public web/index.html web/vite.config.ts -type f)
	cd web && npm run --silent build

ui: tools web/dist/index.html

binary: ui
	cargo build --release --locked

demo: binary
	$(SLIPWAY) demo --dir $(DEMO) $(if $(KEEP),--keep)

test: binary
	cargo test --workspace --release --locked
	scripts/end-to-end.sh

lint: ui
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	scripts/dependency-directions.py
	cd web && npm run --silent check

# The originals, in environments of their own outside the clone, keyed by what is installed.
$(PEERS)/mlflow/.ready: conformance/mlflow/requirements.txt
	@echo "installing MLflow and the official clients into $(PEERS)/mlflow"
	python3 -m venv $(PEERS)/mlflow
	$(PEERS)/mlflow/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(PEERS)/mlserver/.ready: bench/serve/requirements.txt
	@echo "installing MLServer into $(PEERS)/mlserver"
	python3 -m venv $(PEERS)/mlserver
	$(PEERS)/mlserver/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

conformance: binary $(PEERS)/mlflow/.ready
	$(PEERS)/mlflow/bin/python conformance/mlflow/compare.py --slipway $(SLIPWAY)
	$(PEERS)/mlflow/bin/python conformance/mlflow/uploads_in_parts.py --slipway $(SLIPWAY)
	$(PEERS)/mlflow/bin/python conformance/oip/run.py --slipway $(SLIPWAY)

ui-test: binary
	scripts/ui-test.sh

book: binary
	scripts/book.py

bench: bench-track bench-serve

bench-track: binary $(PEERS)/mlflow/.ready
	$(PEERS)/mlflow/bin/python bench/track/run.py --slipway $(SLIPWAY)

bench-serve: binary $(PEERS)/mlflow/.ready $(PEERS)/mlserver/.ready
	$(PEERS)/mlflow/bin/python bench/serve/run.py --slipway $(SLIPWAY) --mlserver $(PEERS)/mlserver

clean:
	rm -rf target web/dist web/node_modules $(DEMO)
