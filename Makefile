# `make demo` and `make test` are the entry points; both install what they need, print what they install, and are safe to run again.
#
#   make demo          the main job on real data (KEEP=1 leaves the platform up)
#   make test          unit, integration and end-to-end tests
#   make fuzz          feeds every parser with random and mutated inputs (FUZZ_SECONDS=60 each)
#   make lint          formatting, clippy, dependency directions, UI types
#   make supply-chain  licences, sources and advisories of all dependencies; writes an SBOM into target/
#   make conformance   the official clients against slipway, compared with recorded responses of the originals
#                      (LIVE=1 runs the originals too, and records their responses anew)
#   make ui-test       the UI in a real browser
#   make lab           a real Kubernetes with simulated GPUs on this machine (make lab-down stops it)
#   make test-lab      tests of the node agent and the installation on that Kubernetes
#   make test-cluster  tests of `slipway cluster` on test hosts with SSH (needs root)
#   make book          runs the commands in the guide
#   make portable      a binary for any Linux with glibc 2.28 or newer (target/x86_64-unknown-linux-gnu/release)
#   make bench         benchmarks against MLflow, MLServer and NVIDIA's tools

.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

SLIPWAY := target/release/slipway
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/slipway
PEERS := $(CACHE)/peers
# The folder with upstream's programs that `make lab-programs` has built, for recipes.
LAB_PROGRAMS = $$(dirname "$$(ls -t $(CACHE)/lab/*/kubectl | head -1)")
DEMO := .slipway-demo
# The results of the tests that conformance/suite.py runs, as JUnit XML.
junit = --junit target/junit/$(1).xml
# scripts/tools.sh installs missing tools there.
export PATH := $(CACHE)/tools/bin:$(PATH)

.PHONY: help tools go demo test test-programs fuzz lint supply-chain conformance conformance-mlflow conformance-serve conformance-gpu conformance-kube conformance-dvc conformance-kfp conformance-kube-api conformance-stores ui ui-test book lab lab-down lab-programs test-lab test-cluster bench bench-track bench-serve bench-gpu bench-objects bench-operator bench-cluster bench-data bench-pipeline binary portable clean

help:
	@sed -n 's/^#   //p' Makefile

tools:
	@scripts/tools.sh

go: tools
	@scripts/tools.sh go

web/node_modules/.ready: web/package-lock.json
	@echo "installing the UI's build tools (npm ci in web/)"
	cd web && npm ci --no-audit --no-fund --silent
	@touch $@

web/dist/index.html: web/node_modules/.ready $(shell find web/src web/public web/index.html web/vite.config.ts -type f)
	cd web && npm run --silent build

ui: tools web/dist/index.html

# BUILT=1 takes the binary as it is, where cargo would wait for another build.
binary: $(if $(BUILT),,ui)
	$(if $(BUILT),test -x $(SLIPWAY),cargo build --release --locked)

# The released binary: zig's linker targets glibc 2.28, so that it runs on any Linux with that version or newer.
PORTABLE := target/x86_64-unknown-linux-gnu/release/slipway

$(PEERS)/zig/.ready:
	@echo "installing zig and cargo-zigbuild into $(PEERS)/zig"
	python3 -m venv $(PEERS)/zig
	$(PEERS)/zig/bin/pip install --quiet --disable-pip-version-check ziglang==0.17.1 cargo-zigbuild==0.24.1
	@touch $@

portable: ui $(PEERS)/zig/.ready
	PATH=$(PEERS)/zig/bin:$$PATH cargo zigbuild --release --locked -p slipway --target x86_64-unknown-linux-gnu.2.28
	scripts/glibc.py $(PORTABLE) 2.28

demo: binary
	$(SLIPWAY) demo --dir $(DEMO) $(if $(KEEP),--keep)

# With CLIPPY=1, clippy's driver compiles the tests: it is a compiler that also lints. The crates of the workspace are not optimised then,
# and their dependencies are those of the binary, which stays in target/release. Continuous integration compiles a third as much in this way.
ifdef CLIPPY
WITH_CLIPPY := env CARGO_BUILD_BUILD_DIR=target CARGO_TARGET_DIR=target/tests RUSTC_WORKSPACE_WRAPPER=clippy-driver \
  CLIPPY_ARGS=-D__CLIPPY_HACKERY__warnings
CARGO_OPTIONS := --release --locked --config testkit/unoptimised.toml
else
WITH_CLIPPY :=
CARGO_OPTIONS := --release --locked
endif
RUST_TESTS := $(WITH_CLIPPY) testkit/rust.py --cargo "$(CARGO_OPTIONS)"

test: binary test-programs go
	testkit/services.py $(RUST_TESTS) $(call junit,rust)
	$(WITH_CLIPPY) cargo test --workspace $(CARGO_OPTIONS) --doc
	scripts/end-to-end.sh $(call junit,end-to-end)

test-programs: ui
	$(WITH_CLIPPY) cargo test --workspace $(CARGO_OPTIONS) --all-targets --no-run

# Feeds every parser of bytes from users and peers with new inputs, for FUZZ_SECONDS each.
FUZZ_SECONDS ?= 60
fuzz:
	SLIPWAY_FUZZ_SECONDS=$(FUZZ_SECONDS) $(WITH_CLIPPY) cargo test --workspace $(CARGO_OPTIONS) --lib parsers

lint: ui go
	cargo fmt --all --check
	$(WITH_CLIPPY) cargo $(if $(CLIPPY),build,clippy) --workspace $(CARGO_OPTIONS) --all-targets $(if $(CLIPPY),,-- -D warnings)
	scripts/dependency-directions.py
	test -z "$$(gofmt -l lab)" && go vet -C lab ./...
	cd web && npm run --silent check

supply-chain: tools
	scripts/supply-chain.py check
	@mkdir -p target
	scripts/supply-chain.py sbom -o target/slipway.cdx.json

# The originals are installed into virtual environments outside the clone, so that all clones share them. DVC itself is only needed to record
# its results (LIVE=1) and for the benchmark; `dvc-clouds` has its plugins for Azure and Google, which bring many packages.
$(PEERS)/ansible/.ready: bench/cluster/requirements.txt
$(PEERS)/dvc/.ready: conformance/dvc/requirements.txt
$(PEERS)/dvc-clouds/.ready: conformance/dvc/requirements-clouds.txt
$(PEERS)/gpu/.ready: conformance/gpu/requirements.txt
$(PEERS)/kfp/.ready: conformance/kfp/requirements.txt
$(PEERS)/mlflow/.ready: conformance/mlflow/requirements.txt
$(PEERS)/mlserver/.ready: bench/serve/requirements.txt
$(PEERS)/kserve/.ready: conformance/oip/requirements.txt
$(PEERS)/%/.ready:
	@echo "installing the packages of $^ into $(@D)"
	python3 -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check -r $^
	@touch $@

# The originals below are only needed to record their responses (LIVE=1). They are built from the Go modules in conformance/originals.txt.
original = $(shell grep '/$(1)@' conformance/originals.txt)
version = $(lastword $(subst @, ,$(call original,$(1))))
NVIDIA_CTK := $(PEERS)/nvidia-ctk-$(call version,nvidia-ctk)/nvidia-ctk
HELM := $(PEERS)/helm-$(call version,helm)/helm
$(NVIDIA_CTK) $(HELM): | go
	@echo "building $(call original,$(notdir $@)) with go install"
	GOBIN=$(dir $@) GOFLAGS=-modcacherw go install $(call original,$(notdir $@))

# A test kubelet, and the originals that it calls, NVIDIA's device plugin and feature discovery: the node agent is compared with both.
PLUGIN := $(PEERS)/device-plugin-$(word 1,$(shell sha256sum conformance/kube/plugin/go.sum | cut -c1-12))
$(PLUGIN)/kubelet: conformance/kube/plugin/kubelet/main.go conformance/kube/plugin/go.sum | go
	@echo "building the test kubelet"
	@mkdir -p $(PLUGIN)
	go build -C conformance/kube/plugin -trimpath -buildvcs=false -o $(PLUGIN)/ ./kubelet

$(PLUGIN)/nvidia-device-plugin: conformance/kube/plugin/go.sum | go
	@echo "building NVIDIA's device plugin and feature discovery from their Go module"
	@mkdir -p $(PLUGIN)
	go build -C conformance/kube/plugin -trimpath -buildvcs=false -o $(PLUGIN)/ \
	  github.com/NVIDIA/k8s-device-plugin/cmd/nvidia-device-plugin github.com/NVIDIA/k8s-device-plugin/cmd/gpu-feature-discovery

# The parts can be run, and recorded, one by one.
# The last two need cargo, which continuous integration uses for the tests meanwhile.
conformance: conformance-mlflow conformance-gpu conformance-kube conformance-kube-api conformance-dvc conformance-kfp conformance-serve conformance-stores

conformance-mlflow: binary $(PEERS)/mlflow/.ready
	python3 -m unittest discover conformance
	testkit/services.py $(PEERS)/mlflow/bin/python conformance/mlflow/compare.py --slipway $(SLIPWAY) $(if $(LIVE),--live)
	testkit/services.py $(PEERS)/mlflow/bin/python conformance/mlflow/uploads_in_parts.py --slipway $(SLIPWAY)

conformance-serve: binary $(PEERS)/mlflow/.ready $(PEERS)/kserve/.ready
	$(PEERS)/mlflow/bin/python conformance/oip/run.py --slipway $(SLIPWAY) $(call junit,oip)
	$(PEERS)/kserve/bin/python conformance/oip/kserve_client.py --slipway $(SLIPWAY) $(call junit,kserve)
	SLIPWAY_ONNXRUNTIME=$$(find $(PEERS)/mlflow -name 'libonnxruntime.so*' -type f | head -1) \
	  $(RUST_TESTS) --ignored --except throughput serve:: serve/

conformance-gpu: binary $(PEERS)/gpu/.ready $(if $(LIVE),$(NVIDIA_CTK))
	$(PEERS)/gpu/bin/python conformance/gpu/run.py --slipway $(SLIPWAY) $(if $(LIVE),--nvidia-ctk $(NVIDIA_CTK)) $(call junit,gpu)

conformance-kube: binary $(PEERS)/gpu/.ready $(PLUGIN)/kubelet $(if $(LIVE),$(HELM) $(PLUGIN)/nvidia-device-plugin)
	$(PEERS)/gpu/bin/python conformance/kube/chart.py --slipway $(SLIPWAY) $(if $(LIVE),--helm $(HELM)) $(call junit,chart)
	$(PEERS)/gpu/bin/python conformance/kube/plugin.py --slipway $(SLIPWAY) --kubelet $(PLUGIN)/kubelet $(if $(LIVE),--upstream $(PLUGIN)) $(call junit,plugin)
	conformance/kube/amd.py --slipway $(SLIPWAY) --kubelet $(PLUGIN)/kubelet $(call junit,amd)

conformance-dvc: binary $(if $(LIVE),$(PEERS)/dvc/.ready $(PEERS)/dvc-clouds/.ready)
	python3 conformance/dvc/run.py --slipway $(SLIPWAY) $(if $(LIVE),--dvc $(PEERS)/dvc/bin/dvc) $(call junit,dvc)
	python3 conformance/dvc/remotes.py --slipway $(SLIPWAY) $(if $(LIVE),--dvc $(PEERS)/dvc/bin/dvc) $(call junit,dvc-remotes)

conformance-kfp: binary $(PEERS)/kfp/.ready
	$(PEERS)/kfp/bin/python conformance/kfp/client.py --slipway $(SLIPWAY) $(call junit,kfp-client)
	$(PEERS)/kfp/bin/python conformance/kfp/kills.py --slipway $(SLIPWAY) $(call junit,kfp-kills)
	$(PEERS)/kfp/bin/python conformance/kfp/steps.py --slipway $(SLIPWAY) $(call junit,kfp-steps)
	$(PEERS)/kfp/bin/python conformance/kfp/corpus.py --slipway $(SLIPWAY) $(if $(LIVE),--live) $(call junit,kfp-corpus)

# Kubernetes itself is built once per machine. It does not depend on slipway's binary, so it can be built while cargo runs.
lab-programs: go
	@scripts/lab-tools.sh
	@mkdir -p $(CACHE)/lab
	go build -C lab -trimpath -buildvcs=false -o $(CACHE)/lab/lab .
	$(CACHE)/lab/lab --source lab build

# A client of client-go for the Kubernetes API of `slipway up`.
INFORMERS := $(PEERS)/informers-$(word 1,$(shell cat conformance/kube-api/informers/go.sum conformance/kube-api/informers/main.go | sha256sum | cut -c1-12))/informers
$(INFORMERS): | go
	@echo "building a client of client-go"
	@mkdir -p $(@D)
	go build -C conformance/kube-api/informers -trimpath -buildvcs=false -o $@ .

# kubectl and the official clients against the Kubernetes API of `slipway up`, which is compared with upstream's API server. The lab builds both.
conformance-kube-api: binary lab-programs $(INFORMERS) $(PEERS)/kfp/.ready
	programs=$(LAB_PROGRAMS); \
	conformance/kube-api/run.py --slipway $(SLIPWAY) --kubectl $$programs/kubectl $(call junit,kube-api); \
	conformance/kube-api/runs.py --slipway $(SLIPWAY) --kubectl $$programs/kubectl $(call junit,kube-api-runs); \
	conformance/kube-api/compare.py --slipway $(SLIPWAY) --programs $$programs $(call junit,kube-api-compare)
	conformance/kube-api/kills.py --slipway $(SLIPWAY) $(call junit,kube-api-kills)
	$(PEERS)/kfp/bin/python conformance/kube-api/clients.py --slipway $(SLIPWAY) --informers $(INFORMERS) $(call junit,kube-api-clients)

# The tests that every store of objects must pass.
conformance-stores: binary lab-programs
	$(WITH_CLIPPY) conformance/kube-api/contract.py --slipway $(SLIPWAY) --cargo "$(CARGO_OPTIONS)" --programs "$(LAB_PROGRAMS)"

lab: binary lab-programs
	$(SLIPWAY) lab up --nodes 2 --gpus a100x8,t4

lab-down: binary
	$(SLIPWAY) lab down

test-lab: binary lab-programs $(PEERS)/kfp/.ready
	python3 testkit/lab/run.py $(SLIPWAY) $(call junit,lab)

test-cluster: binary $(PEERS)/ansible/.ready
	ANSIBLE=$(PEERS)/ansible/bin python3 testkit/cluster/run.py $(SLIPWAY) $(call junit,cluster)

ui-test: binary
	scripts/ui-test.sh

book: binary $(PEERS)/kfp/.ready
	scripts/book.py $(SLIPWAY) $(call junit,book)

bench: bench-track bench-serve bench-gpu

# Compares with Ansible. Needs root for the test hosts.
bench-cluster: binary $(PEERS)/ansible/.ready
	python3 bench/cluster/run.py --slipway $(SLIPWAY) --ansible $(PEERS)/ansible/bin/ansible-playbook
	python3 bench/cluster/thousand.py --slipway $(SLIPWAY)

# Compares with Kubernetes' own job controller. Needs Go.
bench-operator: binary lab-programs
	cargo build --release --locked -p slipway-operator --example hollow_nodes
	python3 bench/operator/run.py --slipway $(SLIPWAY)

# Compares with upstream's API server and etcd, which the lab builds.
bench-objects: binary lab-programs
	bench/objects/run.py --slipway $(SLIPWAY) --programs "$(LAB_PROGRAMS)"

bench-gpu: binary
	python3 bench/gpu/run.py --slipway $(SLIPWAY)

# Compares with the SDK's local runner, and as root with plain Jobs on the lab.
bench-pipeline: binary lab-programs $(PEERS)/kfp/.ready
	$(PEERS)/kfp/bin/python bench/pipeline/run.py --slipway $(SLIPWAY)
	$(if $(filter 0,$(shell id -u)),python3 bench/pipeline/cluster.py --slipway $(SLIPWAY))

# Compares with DVC, `cp -r` and `md5sum`.
bench-data: binary $(PEERS)/dvc/.ready
	python3 bench/data/run.py --slipway $(SLIPWAY) --dvc $(PEERS)/dvc/bin/dvc

bench-track: binary $(PEERS)/mlflow/.ready
	$(PEERS)/mlflow/bin/python bench/track/run.py --slipway $(SLIPWAY)
	$(PEERS)/mlflow/bin/python bench/track/run.py --slipway $(SLIPWAY) --postgres

bench-serve: binary $(PEERS)/mlflow/.ready $(PEERS)/mlserver/.ready
	$(PEERS)/mlflow/bin/python bench/serve/run.py --slipway $(SLIPWAY) --mlserver $(PEERS)/mlserver

clean:
	rm -rf target web/dist web/node_modules $(DEMO)
