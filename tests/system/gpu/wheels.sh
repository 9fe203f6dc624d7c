#!/usr/bin/env bash
# Collect wheels for acceptance.sh on a machine with network, for one without: never torch, and nothing of CUDA.
#
#   tests/system/gpu/wheels.sh [--out FOLDER] [--python VERSION] [PACKAGE...]
#
# --out     folder for the wheels; default gpu-wheels
# --python  version of the Python that will use them (Linux, x86-64); default 3.11
# PACKAGE   only these, with what they need; default all that `pip install cosmicai` needs, and pytest
#
# The versions are those of the locked requirements. $PYTHON is the interpreter whose pip downloads; default python3.
set -euo pipefail
root=$(cd "$(dirname "$0")/../../.." && pwd)
python=${PYTHON:-python3}
out=gpu-wheels version=3.11 packages=()
while [ $# -gt 0 ]; do
  case $1 in
  -h | --help) sed -n '2,/^set/{/^set/d; s/^# \{0,1\}//; p}' "$0" && exit ;;
  --out) out=${2:?--out needs a folder} && shift ;;
  --python) version=${2:?--python needs a version} && shift ;;
  -*) echo "there is no option $1; see --help" >&2 && exit 2 ;;
  *) packages+=("$1") ;;
  esac
  shift
done
if [ ${#packages[@]} = 0 ]; then
  mapfile -t packages < <("$python" -c 'import sys, tomllib
print(*tomllib.load(open(sys.argv[1], "rb"))["project"]["dependencies"], "pytest", "pytest-timeout", sep="\n")' \
    "$root/pyproject.toml")
fi
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
{
  sed -nE 's/^([A-Za-z0-9._-]+==[^ ;]+).*/\1/p' "$root/requirements.lock" "$root/requirements-dev.lock"
  echo 'torch==0' # exists nowhere: what needs torch is refused instead of downloaded with CUDA
} >"$constraints"
platforms=()
for glibc in 1 2010 2014 _2_17 _2_24 _2_26 _2_27 _2_28 _2_31 _2_34; do platforms+=(--platform "manylinux${glibc}_x86_64"); done
"$python" -m pip download --quiet --disable-pip-version-check --only-binary=:all: --python-version "$version" \
  --implementation cp "${platforms[@]}" --constraint "$constraints" --dest "$out" "${packages[@]}"
du -shc "$out"/*.whl
