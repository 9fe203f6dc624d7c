#!/bin/sh
# What the image runs: under Lambda the function that its command names, else its command.
set -eu
if [ -n "${AWS_LAMBDA_RUNTIME_API-}" ]; then
  cd "$LAMBDA_TASK_ROOT"
  exec python -m awslambdaric "${1:-handlers.infer}"
fi
[ $# -gt 0 ] || set -- cosmicai --help
exec "$@"
