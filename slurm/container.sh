#!/usr/bin/env bash
# Runs the worker of a job: with this project's .venv, if there is one, or in a container.
#
#   slurm/container.sh COMMAND ARG...
#   COSMICAI_IMAGE=cosmicai.sif slurm/container.sh cosmicai infer /data/survey --weights W --out /data/run
#
# COSMICAI_IMAGE   Apptainer image, or a folder with an unpacked one; without it there is no container
# COSMICAI_BIND    further folders to mount in the container, separated by ':'; the working directory and the folders
#                  that the arguments and the variables below name are always mounted
# COSMICAI_PYTHONPATH  PYTHONPATH of workers with .venv, which do not get that of the environment
#
# The container gets the environment variables SLURM_*, PMI*, OMPI_*, MASTER_*, COSMICAI_*, AWS_*, CUDA_VISIBLE_DEVICES
# and TMPDIR, except those by which it describes itself. Any other variable NAME can be given as APPTAINERENV_NAME.
set -euo pipefail
case ${1--h} in -h | --help) sed -n '2,/^set/{/^set/d; s/^# \{0,1\}//; p}' "$0" && exit ;; esac
fail() { echo "container.sh: $*" >&2 && exit 2; }

trap '' USR1 USR2 # SLURM signals every process of a step when time is up, but the batch script handles the end
if [ -z "${COSMICAI_IMAGE-}" ]; then
  root=$(cd "$(dirname "$0")/.." && pwd)
  if [ -d "$root/.venv" ]; then # whose libraries those that a site's module names would precede
    unset PYTHONHOME
    export PATH=$root/.venv/bin:$PATH PYTHONNOUSERSITE=1 PYTHONPATH=${COSMICAI_PYTHONPATH-}
  fi
  command -v "$1" >/dev/null || fail "there is no $1; run \`make install\` in $root, or set COSMICAI_IMAGE"
  exec "$@"
fi
[ -e "$COSMICAI_IMAGE" ] || fail "COSMICAI_IMAGE=$COSMICAI_IMAGE does not exist"
if ! command -v apptainer && command -v module; then
  set +eu # which modules are not written for
  module load apptainer
  set -eu
fi >/dev/null
command -v apptainer >/dev/null || fail "there is no apptainer here, which COSMICAI_IMAGE=$COSMICAI_IMAGE needs"

options=(--cleanenv --no-eval --pwd "$PWD") # without --no-eval a shell would expand the values of variables
declare -A mounted
mount_path() { # PATH: also its target, since links are followed within the container
  local path
  for path in "$(realpath -m "$1")" "$1"; do
    [ -z "${mounted[$path]-}" ] || continue
    mounted[$path]=yes path=${path//\"/\"\"}
    options+=(--mount "type=bind,\"source=$path\",\"destination=$path\"")
  done
}
mount_folder_of() { # WORD: if it is a path, its nearest folder that exists, but none of the system, which the image has
  local path=$1
  while [[ $path = /* && ! -d $path ]]; do path=$(dirname "$path"); done
  [[ ! $path =~ ^/+[^/] || $path =~ ^/+(bin|dev|etc|lib|lib64|proc|sbin|sys|usr)(/|$) ]] || mount_path "$path"
}
mount_folder_of "$PWD"
for word in "${@:2}"; do mount_folder_of "$word"; done
for name in $(compgen -e | grep -E '^(SLURM_|PMI|OMPI_|MASTER_|COSMICAI_|AWS_|CUDA_VISIBLE_DEVICES$|TMPDIR$)' |
  grep -Ev '^COSMICAI_(GIT_COMMIT|GRAPHS|IMAGE_DIGEST|IMAGE_VARIANT)$'); do
  export "APPTAINERENV_$name=${!name}"
  [[ $name =~ ^(SLURM_|COSMICAI_BIND|COSMICAI_IMAGE) ]] || mount_folder_of "${!name}"
done
IFS=: read -ra folders <<<"${COSMICAI_BIND-}"
for folder in "${folders[@]}"; do mount_path "$folder"; done

[[ ${CUDA_VISIBLE_DEVICES:-NoDevFiles} = NoDevFiles || ! -e /dev/nvidiactl ]] || options+=(--nv) # the job has a GPU
[ "$(id -u)" != 0 ] || options+=(--no-privs)
outside=$(git -C "$(dirname "$0")" describe --always --abbrev=40 --dirty --exclude='*' 2>/dev/null) || outside=
# shellcheck disable=SC2016 # within, where Apptainer does not leave signals ignored
within='trap "" USR1 USR2
[ -z "$2" ] || [ "${COSMICAI_GIT_COMMIT-$2}" = "$2" ] || echo "container.sh: $1 was built from commit" \
  "$COSMICAI_GIT_COMMIT and the code outside is of $2; build the image anew, or check its commit out" >&2
shift 2; exec "$@"'
exec apptainer exec "${options[@]}" "$COSMICAI_IMAGE" sh -c "$within" sh "$COSMICAI_IMAGE" "$outside" "$@"
