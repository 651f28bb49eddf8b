#!/usr/bin/env bash
# Fills a slipway with the demo, clicks through its UI in a real browser, stops it.
set -euo pipefail
cd "$(dirname "$0")/.."

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
trap 'target/release/slipway down --home "$demo/home" || true' EXIT
target/release/slipway down --home "$demo/home"
target/release/slipway demo --dir "$demo" --keep
control=$(python3 -c "import json; print(json.load(open('$demo/home/server.json'))['control'])")
(cd web && SLIPWAY_URL="http://$control" npm run --silent test:ui)
