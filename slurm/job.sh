# shellcheck shell=bash
# What the batch scripts in jobs/ share: their arguments, and how they end before SLURM ends them. To be sourced.
#
#   begin NAME "$@"   from SURVEY, RUN and WEIGHTS, all of which may be missing: $survey, $run, $weights and $options;
#                     --help tells the script's head comment and ends
#   go COMMAND...     runs it and returns if it went well, else ends the job with its exit code
#
# With `#SBATCH --signal=B:USR1@60` SLURM warns the batch shell before time is up. The command then gets SIGTERM, at
# which a worker drops what it has in hand, and the job is requeued to go on with the rest.
begin() { # NAME [SURVEY [RUN [WEIGHTS]]]
  case ${2-} in -h | --help) sed -n '2,/^#SBATCH/{/^#SBATCH/d; s/^# \{0,1\}//; p}' "$0" && exit ;; esac
  name=$1 told='' child='' # told: a U for every USR1, a T for every TERM
  [ -n "${SLURM_JOB_ID-}" ] || fail "this is a job; submit it with sbatch"
  [ $# -le 4 ] || fail "expected SURVEY, RUN and WEIGHTS at most, not $(($# - 1)) arguments"
  # By its task, since the number of the last task is that of the whole array.
  job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}
  trap 'told+=U; stop' USR1
  trap 'told+=T; stop' TERM
  survey=$(absolute "${2:-demo}") weights=$(absolute "${4:-demo}")
  run=$(absolute "${3:-runs/$name-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}")
  read -ra options <<<"${COSMICAI_INFER_OPTIONS-}"
  echo "$name: survey $survey, weights $weights, run $run" "${options[@]}"
}

fail() { echo "$name: $*" >&2 && exit 2; }

absolute() { # PATH: seen from the folder of submission
  if [[ $1 =~ ^(demo$|s3://|/) ]]; then printf %s "$1"; else printf %s "$SLURM_SUBMIT_DIR/$1"; fi
}

go() { # COMMAND...
  local code=130 heard
  if [ -z "$told" ]; then
    command=$1
    "$@" &
    child=$!
    [ -z "$told" ] || stop # told just now
    # A signal ends the waiting, but not the command.
    until heard=$told code=0 && { wait "$child" || code=$?; } && [ "$told" = "$heard" ]; do :; done
  fi
  case $told:$code in
    *T*) exit 143 ;;               # cancelled, or preempted: then SLURM itself requeues it
    U*:[!023] | U*:??*) requeue ;; # unless it came to its own end just then
  esac
  [ $code = 0 ] || exit $code
}

stop() { # the command, if there is one
  [ -n "$child" ] || return 0
  # The tasks of srun get it from SLURM, since srun itself would kill them. A second one ends whoever stays.
  if [ "$command" = srun ]; then scancel --signal=TERM "$job"; else kill -TERM "$child"; fi 2>/dev/null || :
  { timeout 20 tail --follow --pid="$child" /dev/null || kill -TERM "$child"; } >/dev/null 2>&1 &
}

requeue() {
  if [ "${SLURM_RESTART_COUNT:-0}" -ge "${COSMICAI_MAX_REQUEUES:=10}" ]; then
    echo "$name: out of time, and requeued $COSMICAI_MAX_REQUEUES times already; submit it again to go on" >&2
    exit 1
  fi
  echo "$name: out of time, requeued to go on" >&2
  scontrol requeue "$job" || exit 1
  exit 0
}
