#!/usr/bin/env bash
# Predict redshifts with the tasks of a SLURM array. Each does its share and then what others have left; the last one
# makes the catalogue. Tasks may start late, be requeued, or never start.
#
#   sbatch --account=ME --partition=standard jobs/infer_array.sh          4,096 synthetic galaxies, demo weights
#   sbatch --account=ME --partition=standard --array=0-63 jobs/infer_array.sh SURVEY RUN WEIGHTS
#   sbatch --account=ME --partition=gpu-mig --array=0-13 --gres=gpu:1g.24gb:1 --mem=8G jobs/infer_array.sh \
#     SURVEY RUN WEIGHTS                                                  with a GPU, or a slice of one, each
#
# The same command again does what is missing in RUN. Leave out --account and --partition where your site has defaults.
# SURVEY and WEIGHTS are paths, relative to where you submit, s3:// addresses or `demo`; RUN is runs/infer_array-JOB
# by default, and has what the tasks print in RUN/logs. A task that runs out of time drops its current item and is
# requeued. Variables:
#
# COSMICAI_INFER_OPTIONS   further options of `cosmicai infer`, such as "--precision int8"
# COSMICAI_IMAGE           run in this container; see slurm/container.sh --help
# COSMICAI_MAX_REQUEUES    how often at most a task is requeued; default 10
# COSMICAI_ROOT            this project's folder, if you submit from another one
#SBATCH --job-name=cosmicai
#SBATCH --array=0-3
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=2000M
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

parse_arguments infer_array "$@"
run_command "$root/slurm/container.sh" cosmicai infer "$survey" --weights "$weights" --out "$run" --resume \
  "${options[@]}"
