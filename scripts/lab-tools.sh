#!/usr/bin/env bash
# Checks for the programs that the lab needs, and installs missing ones with apt when run as root.
set -euo pipefail

missing=()
command -v ip >/dev/null || missing+=(iproute2)
command -v nft >/dev/null || [ -x /usr/sbin/nft ] || missing+=(nftables)
command -v runc >/dev/null || [ -x /usr/sbin/runc ] || missing+=(runc)
command -v strace >/dev/null || missing+=(strace)
[ -x /bin/busybox ] || missing+=(busybox-static)
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
