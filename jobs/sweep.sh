#!/usr/bin/env bash
# Measure the speed by partition size, batch size and number of ranks: one job for each combination, one after the other
# so that none disturbs another, and a last one that collects all results. Run it on the login node, from the project's
# folder.
#
#   jobs/sweep.sh [SURVEY FOLDER WEIGHTS]                              by default `demo`, runs/sweep and `demo`
#   SBATCH_ACCOUNT=ME SBATCH_PARTITION=standard BATCH_SIZES=64,512 WORLD_SIZES=1,8 jobs/sweep.sh SURVEY FOLDER WEIGHTS
#
# The results are in FOLDER/sweep.json at the end. Run it again for what is missing. Variables and their defaults:
#
# PARTITION_MB     25,100       megabytes per partition, into which the survey is cut
# BATCH_SIZES      32,512       galaxies predicted at once
# WORLD_SIZES      1,2,4        numbers of ranks; each job has as many cores as the largest of them
# REPEATS          3            runs of each combination; their median is reported
# SBATCH_...                    options of sbatch: SBATCH_ACCOUNT, SBATCH_TIMELIMIT, SBATCH_EXCLUSIVE, ...
# COSMICAI_IMAGE                run in this container; see slurm/container.sh --help
set -euo pipefail
case ${1-} in -h | --help) sed -n '2,/^set/{/^set/d; s/^# \{0,1\}//; p}' "$0" && exit ;; esac
root=$(cd "$(dirname "$0")/.." && pwd)
command -v sbatch >/dev/null || { echo "sweep.sh: there is no sbatch; run it where jobs are submitted" >&2 && exit 2; }

[ "${1:-demo}" = demo ] || [ -n "${3-}" ] ||
  { echo "sweep.sh: WEIGHTS are missing; give SURVEY, FOLDER and WEIGHTS" >&2 && exit 2; }
survey=${1:-demo} folder=$(realpath -m "${2:-runs/sweep}") weights=${3:-demo}
[[ $survey =~ ^(demo$|s3://) ]] || survey=$(realpath "$survey")
[[ $weights =~ ^(demo$|s3://) ]] || weights=$(realpath "$weights")
IFS=, read -ra partitions <<<"${PARTITION_MB:=25,100}"
IFS=, read -ra batches <<<"${BATCH_SIZES:=32,512}"
IFS=, read -ra worlds <<<"${WORLD_SIZES:=1,2,4}"
cores=$(printf '%s\n' "${worlds[@]}" | sort -n | tail -n 1)
mkdir -p "$folder/logs"

previous=
submit() { # NAME PARTITION_MB,... BATCH_SIZE,... RANKS,...: a job that starts when the previous one has ended, however
  local command=("$root/slurm/container.sh" cosmicai bench sweep "$survey" --out "$folder" --weights "$weights"
    --partition-mb "$2" --batch-sizes "$3" --world-sizes "$4" --repeats "${REPEATS:-3}")
  previous=$(sbatch --parsable --output="$folder/logs/$1.log" ${previous:+--dependency="afterany:$previous"} <<END
#!/bin/bash
#SBATCH --job-name=cosmicai-sweep --kill-on-invalid-dep=yes
#SBATCH --nodes=1 --ntasks=1 --cpus-per-task=$cores --mem-per-cpu=1000M --time=01:00:00
exec $(printf '%q ' "${command[@]}")
END
  )
  previous=${previous%%;*} # without the cluster's name
  echo "job $previous: $1"
}

for partition in "${partitions[@]}"; do
  for batch in "${batches[@]}"; do
    for world in "${worlds[@]}"; do
      submit "partition-${partition}MB-batch-$batch-world-$world" "$partition" "$batch" "$world"
    done
  done
done
submit all "$PARTITION_MB" "$BATCH_SIZES" "$WORLD_SIZES" # does what may still be missing, and collects all
echo "results in $folder/sweep.json when job $previous has ended; logs in $folder/logs; scancel --name=cosmicai-sweep"
