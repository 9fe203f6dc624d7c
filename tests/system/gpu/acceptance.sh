#!/usr/bin/env bash
# Measure and test this checkout on a machine with a GPU, without network or installation, in under eight minutes.
#
#   tests/system/gpu/acceptance.sh [--out FOLDER] [--wheels FOLDER] [--seconds N] [--steps NAME,...]
#                                  [--weights FILE] [--galaxies N]
#
# --out       folder for acceptance.json and acceptance.log; default $OUT, else gpu
# --wheels    wheels of the packages that this Python lacks, as tests/system/gpu/wheels.sh collects them
# --seconds   time for all steps together; default 470
# --steps     only these steps, which docs/platforms/gpu.md lists
# --weights   weights of the full-size network; by default they are trained in a step of its own, and without a GPU they
#             are the demo's
# --galaxies  size of the synthetic survey; default 20000, without a GPU 512
#
# $PYTHON is the interpreter, with its own torch; default python3. The exit code is 1 if a step failed.
set -euo pipefail
root=$(cd "$(dirname "$0")/../../.." && pwd)
python=${PYTHON:-python3}
wheels='' arguments=()
while [ $# -gt 0 ]; do
  case $1 in
  -h | --help) sed -n '2,/^set/{/^set/d; s/^# \{0,1\}//; p}' "$0" && exit ;;
  --wheels) wheels=${2:?--wheels needs a folder} && shift ;;
  *) arguments+=("$1") ;;
  esac
  shift
done
export PYTHONPATH=$root/src:$root:$root/tests${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
if [ -n "$wheels" ]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  # Only those that this Python lacks, since what PYTHONPATH names hides the packages of the interpreter.
  mapfile -t missing < <("$python" "$root/tests/system/gpu/missing_wheels.py" "$wheels")
  [ ${#missing[@]} = 0 ] ||
    "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --target "$site" \
      "${missing[@]}"
  export PYTHONPATH=$PYTHONPATH:$site
fi
"$python" -m system.gpu.acceptance "${arguments[@]}"
