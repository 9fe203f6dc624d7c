"""The interface of launchers: what they are given, what they do, and what they give back.

A launcher decides where ranks run, nothing else: every rank of every launcher is `cosmicai work` on the same run
folder. A new platform is one module with one class that has the methods of `Launcher`, and one line in `registry.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ..errors import InputError
from ..runs.request import RunRequest

# The command line's options need the requests alone; run folders and summaries bring numpy and the formats of surveys.
if TYPE_CHECKING:
    from ..runs.store import RunFolder
    from ..runs.summary import Summary
    from .slurm.usage import JobUsage

MAX_LOCAL_RANKS = 4096  # of one node: more than any has cores, and each is a process


@dataclass(frozen=True)
class RankRequest:
    """How many ranks of which kind, and what happens when one dies.

    `procs` are ranks on CPU cores and `gpus` are ranks with one GPU each, on all `nodes` together; at most one of them
    is given, and without both there is one rank per node, or on GPUs one per GPU. `rank_timeout` is in seconds.
    """

    procs: int | None = None
    gpus: int | None = None
    nodes: int = 1
    schedule: str = "dynamic"
    max_restarts: int = 3
    rank_timeout: float = 300.0

    @property
    def ranks(self) -> int:
        """Ranks on all nodes together."""
        return self.gpus or self.procs or self.nodes

    @property
    def per_node(self) -> int:
        """Ranks on each node. Raises InputError if that is different for nodes, or more than MAX_LOCAL_RANKS."""
        if self.ranks % self.nodes:
            option = "gpus" if self.gpus else "procs"
            raise InputError(
                f"--{option} {self.ranks} is for all nodes together and cannot be shared evenly by --nodes {self.nodes}"
            )
        per_node = self.ranks // self.nodes
        if per_node > MAX_LOCAL_RANKS:
            raise InputError(f"{per_node} ranks on one node are requested; expected at most {MAX_LOCAL_RANKS}")
        return per_node


@dataclass(frozen=True)
class SlurmRequest:
    """How to submit ranks to SLURM.

    `cores` are those of each rank, `memory_mb` is that of each node and `mem_per_cpu` in MB that of each core; `time`
    limits each job, in SLURM's notation. `gpu_kind` is a kind of GPU of the site, several with commas, for each of
    which there are jobs, or "cheapest", which is the default. `sbatch` are further options of sbatch, such as
    "comment=mine". `tasks` is the size of an array, whose tasks each have the nodes and ranks of the `RankRequest`. A
    job that ran out of time is requeued at most `requeues` times.
    """

    site: str | None = None
    account: str | None = None
    partition: str | None = None
    time: str = "1:00:00"
    gpu_kind: str | None = None
    cores: int | None = None
    memory_mb: int | None = None
    mem_per_cpu: int | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    mail_user: str | None = None
    mail_type: str | None = None
    dependency: str | None = None
    exclude: str | None = None
    nice: int | None = None
    sbatch: tuple[str, ...] = ()
    tasks: int | None = None
    image: str | None = None
    requeues: int = 10


@dataclass(frozen=True)
class CloudRequest:
    """How to run on AWS.

    A local survey is cut into partitions of `partition_mb`; each rank has `memory` MB, and at most `concurrency` of
    them run at once. `tolerate` is the percentage of the galaxies that may be missing in the end. With `fmi` the ranks
    share the work through the stack's rendezvous server.
    """

    stack: str = "cosmicai"
    partition_mb: float | None = None
    memory: int | None = None
    concurrency: int | None = None
    tolerate: float | None = None
    fmi: bool = False
    region: str | None = None
    profile: str | None = None
    endpoint_url: str | None = None


@dataclass(frozen=True)
class LaunchRequest:
    """A run, and the ranks that shall do it.

    `slurm` is for the SLURM launcher and `cloud` for the AWS launcher. `wait` stays until SLURM's jobs have ended, and
    `detach` returns once the run has started on AWS. A launcher of ranks on this machine serves metrics at
    `metrics_port`, a port or `HOST:PORT`.
    """

    run: RunRequest
    ranks: RankRequest = field(default_factory=RankRequest)
    slurm: SlurmRequest | None = None
    cloud: CloudRequest | None = None
    wait: bool = False
    detach: bool = False
    metrics_port: str | None = None


@dataclass(frozen=True)
class ResumeRequest:
    """Ranks that shall finish a run; those with which it was submitted where `ranks` is None.

    `options` are the options that the user gave for the ranks, as written on the command line. `metrics_port` is as in
    `LaunchRequest`.
    """

    ranks: RankRequest | None = None
    slurm: SlurmRequest | None = None
    wait: bool = False
    detach: bool = False
    options: tuple[str, ...] = ()
    metrics_port: str | None = None


@dataclass(frozen=True)
class Submission:
    """The outcome of submitting or resuming a run, which the command line turns into output and exit code.

    `lines` are printed first. If the ranks have ended (`has_ended`), the run's `summary` follows, which is made from
    the run folder where it is None, and then the `closing` lines. `incomplete` says why a run has no summary although
    its ranks have ended.
    """

    run: RunFolder
    lines: tuple[str, ...] = ()
    has_ended: bool = False
    summary: Summary | None = None
    closing: tuple[str, ...] = ()
    incomplete: str = ""


@dataclass(frozen=True)
class RemoteStatus:
    """How the work on a run stands where its folder does not show it: in SLURM's queue or on AWS.

    `working` are lines on what runs or waits, `ended` on what has ended. `writer` is what will write the plan of a run
    that has none yet. `run` is the folder into which the ranks write, if it is another one than that of the user.
    If `is_exclusive`, no rank is at work on the run unless `working` says so. `usage` is how much of what was requested
    of SLURM the jobs used, once they have ended.
    """

    working: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()
    writer: str | None = None
    run: RunFolder | None = None
    is_exclusive: bool = False
    usage: JobUsage | None = None


class Launcher(Protocol):
    """A platform on which ranks run. The run folder is the only state: launchers keep none of their own."""

    name: str

    def estimate(self, request: LaunchRequest) -> Iterator[str]:
        """Yield lines about what a run would take, without starting anything (`--dry-run`).

        Raises InputError as `submit` does.
        """

    def submit(self, request: LaunchRequest) -> Submission:
        """Start a run and, unless the platform goes on by itself, wait for its end.

        Raises InputError if the request cannot be fulfilled; nothing has been started then.
        """

    def resume(self, run: RunFolder, request: ResumeRequest) -> Submission:
        """Do what is missing of a run. Raises InputError as `submit` does, or if the run is being worked on."""

    def status(self, run: RunFolder) -> RemoteStatus:
        """Return how this platform's work on a run stands. Raises InputError if the platform does not answer."""

    def cancel(self, run: RunFolder) -> tuple[str, ...]:
        """Stop this platform's work on a run and return what was stopped, such as "job 12" or "process 7".

        Raises InputError if it cannot be stopped from here.
        """
