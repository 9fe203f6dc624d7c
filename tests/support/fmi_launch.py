"""Start SIZE ranks that use a rendezvous server of their own: `python -m support.fmi_launch SIZE PROGRAM ...`.

The exit code is 0, or that of the first rank that has failed.
"""

from __future__ import annotations

import os
import subprocess
import sys

from cosmicai.ranks.environment import RENDEZVOUS, Rank, environment_for
from cosmicai.ranks.fmi import RENDEZVOUS_JOB
from fmi import SECRET_VARIABLE
from support.rendezvous import SECRET, rendezvous_server


def main(size: int, program: list[str]) -> int:
    with rendezvous_server() as server:
        settings = {SECRET_VARIABLE: SECRET.decode(), RENDEZVOUS: str(server.endpoint), RENDEZVOUS_JOB: "test"}
        ranks = [
            subprocess.Popen(
                [sys.executable, *program],
                env=os.environ | settings | environment_for(Rank(rank, size, local_rank=rank, local_size=size)),
            )
            for rank in range(size)
        ]
        return next(filter(None, [rank.wait() for rank in ranks]), 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
