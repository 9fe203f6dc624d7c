# shellcheck shell=bash
# Arguments of the batch scripts in jobs/, and their orderly end before SLURM ends them. To be sourced.
#
#   parse_arguments NAME "$@"   sets $survey, $run, $weights and $options from SURVEY, RUN and WEIGHTS, which must all
#                               be given, or none; --help prints the script's head comment and exits. From then on what
#                               the job prints is in RUN/logs, unless sbatch was given another --output
#   run_command COMMAND...      runs a command and returns if it succeeds, else ends the job with its exit code
#
# With `#SBATCH --signal=B:USR1@60` SLURM signals the batch shell before the time is up. The command then gets SIGTERM,
# at which a worker drops the item that it works on, and the job is requeued to do the rest.
# Submitted from within an allocation, a job has that one's limits in its environment, which contradict its own in srun;
# submitted with --export=NONE, its tasks would get nothing of what this script exports.
unset SLURM_MEM_PER_CPU SLURM_MEM_PER_NODE SLURM_MEM_PER_GPU
export SLURM_EXPORT_ENV=ALL

parse_arguments() { # NAME [SURVEY [RUN [WEIGHTS]]]
  case ${2-} in -h | --help) sed -n '2,/^#SBATCH/{/^#SBATCH/d; s/^# \{0,1\}//; p}' "$0" && exit ;; esac
  name=$1 signals='' child='' # signals: a U for every USR1, a T for every TERM
  [ -n "${SLURM_JOB_ID-}" ] || fail "this is a job; submit it with sbatch"
  [ $# -le 4 ] || fail "expected SURVEY, RUN and WEIGHTS at most, not $(($# - 1)) arguments"
  # By its task, since the number of the last task is that of the whole array.
  job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}
  trap 'signals+=U; terminate' USR1
  trap 'signals+=T; terminate' TERM
  [ "${2:-demo}" = demo ] || [ -n "${4-}" ] ||
    fail "WEIGHTS are missing; give SURVEY, RUN and WEIGHTS (the demo weights are for synthetic galaxies only)"
  survey=$(absolute "${2:-demo}") weights=$(absolute "${4:-demo}")
  run=$(absolute "${3:-runs/$name-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}")
  read -ra options <<<"${COSMICAI_INFER_OPTIONS-}"
  move_output
  echo "$name: survey $survey, weights $weights, run $run" "${options[@]}"
}

fail() { echo "$name: $*" >&2 && exit 2; }

absolute() { # PATH: relative to the folder of submission
  if [[ $1 =~ ^(demo$|s3://|/) ]]; then printf %s "$1"; else printf %s "$SLURM_SUBMIT_DIR/$1"; fi
}

move_output() { # of the job into the run folder, by renaming: SLURM itself goes on writing into the same file
  local from folder=$run/logs
  from=$(readlink "/proc/$$/fd/1")
  [[ $run != s3://* && $from = "$(realpath "$SLURM_SUBMIT_DIR")"/slurm-*.out ]] || return 0
  mkdir -p "$folder" && [ "$(stat --format=%d "$folder" "$from" | uniq | wc -l)" = 1 ] || return 0
  mv "$from" "$folder/$(basename "$from" .out)${SLURM_RESTART_COUNT:+-restart-$SLURM_RESTART_COUNT}.out"
}

run_command() { # COMMAND...
  local code=130 handled
  if [ -z "$signals" ]; then
    command=$1
    "$@" &
    child=$!
    [ -z "$signals" ] || terminate # one arrived before $child was set
    # A signal ends the waiting, but not the command.
    until handled=$signals code=0 && { wait "$child" || code=$?; } && [ "$signals" = "$handled" ]; do :; done
  fi
  case $signals in
    *T*) exit 143 ;; # cancelled, or preempted: then SLURM itself requeues it
    *U*) case $code in 0 | 2 | 3) ;; *) requeue ;; esac ;; # unless it ended by itself: complete, refused, incomplete
  esac
  [ $code = 0 ] || exit $code
}

terminate() { # the command, if it was started
  [ -n "$child" ] || return 0
  # The tasks of srun get the signal from SLURM, since srun itself would kill them. A second one ends those that remain.
  if [ "$command" = srun ]; then scancel --signal=TERM "$job"; else kill -TERM "$child"; fi 2>/dev/null || :
  { timeout 20 tail --follow --pid="$child" /dev/null || kill -TERM "$child"; } >/dev/null 2>&1 &
}

requeue() {
  if [ "${SLURM_RESTART_COUNT:-0}" -ge "${COSMICAI_MAX_REQUEUES:=10}" ]; then
    echo "$name: out of time, and requeued $COSMICAI_MAX_REQUEUES times already; submit it again to continue" >&2
    exit 1
  fi
  echo "$name: out of time, requeued to continue" >&2
  scontrol requeue "$job" || exit 1
  exit 0
}
