#!/usr/bin/env bash
# Runs the demo, tests the UI of its server in a real browser, and stops it; then tests signing in and out against a second server.
#
#   scripts/ui-test.sh [BINARY]
set -euo pipefail
slipway=$(realpath "${1:-"$(dirname "$0")/../target/release/slipway"}")
cd "$(dirname "$0")/.."
mkdir -p target

if ! command -v chromium >/dev/null && [ -z "${CHROMIUM:-}" ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing chromium with apt"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null
  else
    echo "Chromium is missing: install it, or set CHROMIUM to its path" >&2
    exit 1
  fi
fi

demo=.slipway-demo
trap '"$slipway" down --home "$demo/home" || true' EXIT
"$slipway" down --home "$demo/home"
# Simulated GPUs, one of them with MIG instances, and two CPU benchmarks of this machine fill the GPU pages.
export SLIPWAY_GPU_FIXTURE=h100x8 SLIPWAY_FAKE_NVML_STATE="$PWD/target/ui-test-mig.json"
rm -f "$SLIPWAY_FAKE_NVML_STATE"
"$slipway" gpu mig apply "3x1g.10gb + 1x3g.40gb" --gpus 5 --yes
"$slipway" demo --dir "$demo" --keep
for _ in 1 2; do "$slipway" gpu bench --cpu --quick --home "$demo/home" -q >/dev/null; done
# A report saved by an apply on five test hosts (`make test-cluster`) fills the Cluster page.
mkdir -p "$demo/home/clusters/lab" && cp web/tests/cluster.json "$demo/home/clusters/lab/report.json"
# Two repositories for the tab Data: a project with a pipeline, and that of the demo, whose data the runs of the demo used.
web/tests/data-project.sh "$slipway" target/ui-test-data
"$slipway" data repositories add pets "$PWD/target/ui-test-data/project" --home "$demo/home"
"$slipway" data repositories add digits "$PWD/$demo/project" --home "$demo/home"
# A server without tokens, or with tokens from a file, has none in its state folder: then the plain address is used.
control=$(python3 -c "import json; print(json.load(open('$demo/home/server.json'))['control'])")
link=$("$slipway" token --ui --home "$demo/home" 2>/dev/null || echo "http://$control")
(cd web && SLIPWAY_LINK="$link" npm run --silent test:ui)
(cd web && SLIPWAY="$slipway" npm run --silent test:sign-in)
