#!/usr/bin/env bash
# Makes a Debian 12 to build the image upon, where no registry can be reached: a tar file of a root file system.
#
#   containers/base.sh FILE.tar [SUITE [MIRROR]]
#
# SUITE is bookworm by default; MIRROR the one that mmdebstrap takes. The same packages give the same bytes.
set -euo pipefail
case ${1--h} in -h | --help) sed -n '2,/^set/{/^set/d; s/^# \{0,1\}//; p}' "$0" && exit ;; esac
command -v mmdebstrap >/dev/null || {
  echo "base.sh: there is no mmdebstrap to make a base with; install it (on Debian: apt-get install mmdebstrap)" >&2
  exit 2
}
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-0}
partial=$1.partial-$$
trap 'rm -f "$partial"' EXIT
# As Debian's own slim images, without what nobody reads in a container, but with the licences.
mmdebstrap --quiet --variant=minbase --include=ca-certificates --format=tar \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
  "${2:-bookworm}" "$partial" "${@:3}"
mv "$partial" "$1"
