#!/usr/bin/env bash
# Make a base image where no registry can be reached: Debian's own Python, from this host's mirror.
# Usage: bootstrap.sh TAG SUITE. Needs root, debootstrap and a running Docker daemon.
set -euo pipefail
tag=$1 suite=$2
mirror=$(apt-get indextargets --format '$(REPO_URI)' | head -n 1)
root=$(mktemp -d "${TMPDIR:-/var/tmp}/tpi-lab-base.XXXXXX")
trap 'rm -rf --one-file-system "$root"' EXIT
# libgomp1 and libstdc++6 are what compiled wheels take from the system.
debootstrap --variant=minbase --include=python3,libgomp1,libstdc++6 "$suite" "$root" "${mirror:-http://deb.debian.org/debian}"
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb \
  "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/locale/*
tar -C "$root" -c . | docker import --change 'ENV LANG=C.UTF-8' - "$tag" > /dev/null
