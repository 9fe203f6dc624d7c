# shellcheck shell=bash
# To be sourced by a batch script, which runs on the job's first node: where the ranks of torch.distributed meet.
#
#   MASTER_ADDR   that node's name, or its address where names do not resolve
#   MASTER_PORT   a port at which nobody listens here, another one for each job; one that is set already stays
read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
if ! getent hosts "$MASTER_ADDR" >/dev/null; then
  MASTER_ADDR=$(scontrol show node "$MASTER_ADDR" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
fi
if [ -z "${MASTER_PORT-}" ]; then
  MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000)) # below 32768, from where the system gives ports away
  # 0A is TCP_LISTEN: what a connection leaves behind when it is closed (TIME_WAIT) is in nobody's way.
  while grep -Eqs "^ *[0-9]+: [0-9A-F]+:$(printf %04X "$MASTER_PORT") [0-9A-F]+:[0-9A-F]+ 0A " /proc/net/tcp{,6}; do
    MASTER_PORT=$((MASTER_PORT + 1))
  done
fi
export MASTER_ADDR MASTER_PORT
