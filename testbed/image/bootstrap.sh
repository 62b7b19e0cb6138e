#!/usr/bin/env bash
# Make a base where no registry can be reached: Debian's own Python, from this host's own mirror.
# Usage: bootstrap.sh SUITE TARFILE. Needs root and debootstrap; works beside TARFILE.
set -euo pipefail
suite=$1 tarfile=$2

# Only Debian's own archive has SUITE: not a vendor's repository, nor security updates alone.
mirror() {
  apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' 'Created-By: Packages' \
    2> /dev/null | sed -n '/^Debian|Debian|/{s///;p;}' | sort -u
}
found=$(mirror || true)
if [ -z "$found" ] && command -v apt-get > /dev/null; then
  apt-get update -qq > /dev/null || true # the lists name the origin of every archive
  found=$(mirror || true)
fi
found=${found%%$'\n'*}
proxy=$(apt-config shell proxy Acquire::http::Proxy 2> /dev/null || true)
eval "$proxy"
if [ -n "${proxy:-}" ] && [ -z "${http_proxy:-}" ]; then export http_proxy=$proxy; fi

root=$(mktemp -d "$(dirname "$tarfile")/base.XXXXXX")
trap 'rm -rf --one-file-system "$root"' EXIT
# libgomp1 and libstdc++6 are what compiled wheels take from the system.
# Without a mirror of the host's, debootstrap takes its own default.
debootstrap --variant=minbase --include=python3,libgomp1,libstdc++6 "$suite" "$root" \
  ${found:+"$found"}
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb \
  "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/locale/*
tar -C "$root" -cf "$tarfile" .
