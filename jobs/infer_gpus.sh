#!/usr/bin/env bash
# Predict redshifts with one job on several GPUs, of one node or of several: one task per GPU. The tasks connect by
# torch.distributed (NCCL), take items by a shared counter, and make the catalogue at the end.
#
#   sbatch --account=ME --partition=gpu --nodes=2 --ntasks-per-node=4 --gres=gpu:a100:4 jobs/infer_gpus.sh \
#     SURVEY RUN WEIGHTS
#   sbatch --account=ME --partition=gpu jobs/infer_gpus.sh      one GPU, 4,096 synthetic galaxies, demo weights
#
# The same command again does what is missing in RUN. Leave out --account and --partition where your site has defaults.
# SURVEY and WEIGHTS are paths, relative to where you submit, s3:// addresses or `demo`; RUN is runs/infer_gpus-JOB by
# default, and has what the job prints in RUN/logs. A job that runs out of time drops its current items and is requeued.
# Variables:
#
# COSMICAI_INFER_OPTIONS   further options of `cosmicai plan`, such as "--precision tf32"
# COSMICAI_IMAGE           run in this container; see slurm/container.sh --help
# COSMICAI_MAX_REQUEUES    how often at most the job is requeued; default 10
# COSMICAI_ROOT            this project's folder, if you submit from another one
# MASTER_PORT              port at which the tasks connect; default a free port of the first node
#SBATCH --job-name=cosmicai
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=2
#SBATCH --mem-per-cpu=2000M
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

parse_arguments infer_gpus "$@"
# shellcheck source-path=SCRIPTDIR/.. source=slurm/master.sh
. "$root/slurm/master.sh"
export COSMICAI_WORLD_SIZE=$SLURM_NTASKS
run_command "$root/slurm/container.sh" cosmicai plan "$survey" --weights "$weights" --out "$run" --resume \
  --ranks "$SLURM_NTASKS" "${options[@]}"
run_command srun --mpi=none --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \
  "$root/slurm/container.sh" cosmicai work "$run"
