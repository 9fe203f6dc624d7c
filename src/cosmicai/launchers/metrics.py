"""Prometheus metrics of a run: served over HTTP by a launcher, or written for node_exporter's textfile collector."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from .. import storage
from ..errors import InputError
from ..runs.store import RunFolder
from .run_status import RunStatus, UnplannedRun, run_status

LOCAL = "127.0.0.1"  # anyone who can connect learns the names of the run folder and of the nodes


def metric_families(status: RunStatus | UnplannedRun) -> Iterator[Metric]:
    """Yield the metrics of a run, each with the label `run`; without a plan only that the run is not complete."""
    run = status.run

    def gauge(name: str, description: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"cosmicai_{name}", description, labels=["run"])
        family.add_metric([run], value)
        return family

    yield gauge("run_complete", "1 if every galaxy of the plan is done, else 0", float(status.is_complete))
    if isinstance(status, UnplannedRun):
        return
    yield gauge("galaxies_planned", "Galaxies of the plan", status.planned)
    yield gauge("galaxies_done", "Galaxies with a result", status.completed)
    yield gauge("galaxies_missing", "Galaxies without a result", status.missing)
    yield gauge("galaxies_failed", "Galaxies of items that could not be done, among the missing ones", status.failed)
    yield gauge("galaxies_per_second", "Rate of the ranks at work", status.galaxies_per_second)
    yield gauge("work_failures", "Work items that could not be done", len(status.failures))
    latest = status.latest
    ended = sum(rank.state == "finished" for rank in latest)
    states = {"running": status.at_work, "silent": len(latest) - status.at_work - ended, "ended": ended}
    ranks = GaugeMetricFamily("cosmicai_ranks", "Ranks by state of their last attempt", labels=["run", "state"])
    for state, count in states.items():
        ranks.add_metric([run, state], count)
    yield ranks
    restarts = CounterMetricFamily("cosmicai_rank_restarts", "Attempts of ranks after their first", labels=["run"])
    restarts.add_metric([run], len(status.ranks) - len(latest))
    yield restarts
    age = GaugeMetricFamily(
        "cosmicai_rank_heartbeat_age_seconds", "Time since a rank that has not finished wrote its record",
        labels=["run", "rank", "node"],
    )  # fmt: skip
    for rank in latest:
        if rank.state != "finished":
            age.add_metric([run, str(rank.rank), rank.host], round(rank.silent_seconds, 3))
    yield age


def render_metrics(read: Callable[[], RunStatus | UnplannedRun | None]) -> bytes:
    """Return the metrics of the run that `read` returns, in Prometheus's text format."""
    return generate_latest(_registry(read))


def write_metrics(path: str, status: RunStatus | UnplannedRun) -> None:
    """Write the metrics of a run, whole or not at all. Raises StorageError if the file cannot be written."""
    storage.write_bytes(storage.absolute(path), render_metrics(lambda: status))


@contextmanager
def serve_metrics(run: RunFolder, address: str) -> Iterator[None]:
    """Serve the metrics of a run at `/metrics` while the block runs.

    `address` is a port of this machine alone, or `HOST:PORT`. The run folder is read at each request; there are no
    metrics while that is not possible. Raises InputError if the port cannot be used.
    """

    def read() -> RunStatus | None:
        with suppress(InputError):  # no plan yet, or a storage that does not answer for the moment
            return run_status(run)
        return None

    host, port = parse_address(address)
    try:
        server, thread = start_http_server(port, host, _registry(read))
    except (OSError, OverflowError) as error:
        raise InputError(f"--metrics-port {address} cannot be used ({error}); choose another one") from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port of `PORT` or `HOST:PORT`. Raises InputError if the port is not one."""
    host, _, port = address.rpartition(":")
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise InputError(f"--metrics-port {address}: expected a port from 1 to 65535, or HOST:PORT")
    return host.strip("[]") or LOCAL, int(port)


class _RunCollector(Collector):
    """Collects the metrics of a run that is read anew each time."""

    def __init__(self, read: Callable[[], RunStatus | UnplannedRun | None]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, none if the run cannot be read."""
        if (status := self._read()) is not None:
            yield from metric_families(status)


def _registry(read: Callable[[], RunStatus | UnplannedRun | None]) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_RunCollector(read))
    return registry
