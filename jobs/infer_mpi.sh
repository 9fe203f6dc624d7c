#!/usr/bin/env bash
# Predict redshifts with the ranks of one MPI job on the CPUs of one node or of several. They take items by a shared
# counter and make the catalogue at the end. SLURM starts them by PMIx (`srun --mpi=list` shows whether it can); where
# mpi4py and PMIx do not fit together, use jobs/infer_array.sh.
#
#   sbatch --account=ME --partition=parallel --nodes=4 --ntasks=64 jobs/infer_mpi.sh SURVEY RUN WEIGHTS
#   sbatch --account=ME --partition=standard jobs/infer_mpi.sh     4,096 synthetic galaxies, demo weights
#
# The same command again does what is missing in RUN. Leave out --account and --partition where your site has defaults.
# SURVEY and WEIGHTS are paths, relative to where you submit, s3:// addresses or `demo`; RUN is runs/infer_mpi-JOB by
# default, and has what the job prints in RUN/logs. A job that runs out of time drops its current items and is requeued.
# Variables:
#
# COSMICAI_INFER_OPTIONS   further options of `cosmicai plan`, such as "--precision int8"
# COSMICAI_IMAGE           run in this container; see slurm/container.sh --help. If `scontrol show config` says that
#                          TmpFS is not /tmp, add it to COSMICAI_BIND
# COSMICAI_MAX_REQUEUES    how often at most the job is requeued; default 10
# COSMICAI_ROOT            this project's folder, if you submit from another one
#SBATCH --job-name=cosmicai
#SBATCH --ntasks=4
#SBATCH --cpus-per-task=1
#SBATCH --mem-per-cpu=1000M
#SBATCH --time=01:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@60
#SBATCH --open-mode=append
set -euo pipefail
root=${COSMICAI_ROOT:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}
# shellcheck source-path=SCRIPTDIR/.. source=slurm/job.sh
. "$root/slurm/job.sh" 2>/dev/null || {
  echo "there is no $root/slurm/job.sh; submit from the project's folder or set COSMICAI_ROOT" >&2
  exit 2
}

parse_arguments infer_mpi "$@"
export COSMICAI_WORLD_SIZE=$SLURM_NTASKS
run_command "$root/slurm/container.sh" cosmicai plan "$survey" --weights "$weights" --out "$run" --resume \
  --ranks "$SLURM_NTASKS" "${options[@]}"
run_command srun --mpi=pmix --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \
  "$root/slurm/container.sh" cosmicai work "$run"
