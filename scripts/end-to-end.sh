#!/usr/bin/env bash
# Runs the end-to-end tests of the release binary.
set -euo pipefail
cd "$(dirname "$0")/.."
exec python3 testkit/e2e/run.py target/release/slipway "$@"
