#!/bin/sh
# What the image runs: under Lambda the function that its command names, else its command.
set -eu
if [ -n "${AWS_LAMBDA_RUNTIME_API-}" ]; then
  case ${1-} in '' | cosmicai) set -- handlers.infer ;; esac # none was named
  cd "$LAMBDA_TASK_ROOT"
  exec python -m awslambdaric "$1"
fi
exec "$@"
