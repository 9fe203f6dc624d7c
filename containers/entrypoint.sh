#!/bin/sh
# What the image runs: under Lambda the function that its command names, else its command.
set -eu
export HOME="${HOME:-/}"  # nncf and mpirun fail without one, though they need not write to it
if [ -n "${AWS_LAMBDA_RUNTIME_API-}" ]; then
  cd "$COSMICAI_FUNCTIONS"  # LAMBDA_TASK_ROOT is Lambda's own, whatever an image says
  exec python -m awslambdaric "${1:-handlers.infer}"
fi
[ $# -gt 0 ] || set -- cosmicai --help
exec "$@"
