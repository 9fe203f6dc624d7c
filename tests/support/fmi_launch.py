"""Starts SIZE ranks that meet at a rendezvous server of their own: `python -m support.fmi_launch SIZE PROGRAM ...`.

Ends with 0, or with the exit code of the first rank that has failed.
"""

from __future__ import annotations

import os
import subprocess
import sys

from cosmicai.ranks.environment import RENDEZVOUS, Rank, environment_for
from cosmicai.ranks.fmi import JOB
from fmi import SECRET as SECRET_NAME
from support.rendezvous import SECRET, serving


def main(size: int, program: list[str]) -> int:
    with serving() as server:
        place = {SECRET_NAME: SECRET.decode(), RENDEZVOUS: str(server.endpoint), JOB: "test"}
        ranks = [
            subprocess.Popen(
                [sys.executable, *program],
                env=os.environ | place | environment_for(Rank(rank, size, local_rank=rank, local_size=size)),
            )
            for rank in range(size)
        ]
        return next(filter(None, [rank.wait() for rank in ranks]), 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
