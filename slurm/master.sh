# shellcheck shell=bash
# Where the ranks of torch.distributed connect. To be sourced by a batch script, which runs on the job's first node.
#
#   MASTER_ADDR   the name of that node, or its address where names do not resolve
#   MASTER_PORT   a port on which no program listens here, another one for each job; it is kept if it is set already
read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
if ! getent hosts "$MASTER_ADDR" >/dev/null; then
  MASTER_ADDR=$(scontrol show node "$MASTER_ADDR" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
fi
if [ -z "${MASTER_PORT-}" ]; then
  MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000)) # below 32768, where the ephemeral ports begin
  # 0A is TCP_LISTEN: closed connections in TIME_WAIT do not block a port.
  while grep -Eqs "^ *[0-9]+: [0-9A-F]+:$(printf %04X "$MASTER_PORT") [0-9A-F]+:[0-9A-F]+ 0A " /proc/net/tcp{,6}; do
    MASTER_PORT=$((MASTER_PORT + 1))
  done
fi
export MASTER_ADDR MASTER_PORT
