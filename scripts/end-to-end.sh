#!/usr/bin/env bash
# Runs the tests of the test runner, and the end-to-end tests of the release binary.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "$(id -u)" = 0 ] && ! command -v runc >/dev/null && command -v apt-get >/dev/null; then
  echo "installing runc with apt, for the test of a container with GPU devices"
  apt-get update -qq -o DPkg::Lock::Timeout=600
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq -o DPkg::Lock::Timeout=600 runc >/dev/null
fi
python3 -m unittest discover conformance
exec python3 testkit/e2e/run.py target/release/slipway "$@"
