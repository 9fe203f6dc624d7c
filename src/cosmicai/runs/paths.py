"""Where everything of a run lies: the one class that knows the layout of a run folder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from .. import storage
from ..storage.s3 import is_s3, split_s3_uri
from .plan import WorkItem
from .record import record_name


def quantized_name(data: bytes) -> str:
    """Return the file name of a network in int8, which holds its digest."""
    return f"int8-{hashlib.sha256(data).hexdigest()[:16]}.zip"


@dataclass(frozen=True)
class RunPaths:
    """Addresses in the run folder at `uri`, which is local or on S3."""

    uri: str

    def path(self, *names: str) -> str:
        """Return the address of something in the folder."""
        return storage.join(self.uri, *names)

    @property
    def plan_path(self) -> str:
        """The plan."""
        return self.path("plan.json")

    def part_path(self, item: WorkItem) -> str:
        """Return the address of the predictions of an item."""
        return self.path("parts", f"{item.name}.h5")

    def failure_path(self, item: WorkItem) -> str:
        """Return the address of the failure of an item."""
        return self.path("failures", f"{item.name}.json")

    def claim_path(self, submission: str, item: WorkItem, number: int = 1) -> str:
        """Return the address at which one rank of a submission claims an item, for the n-th time that this happens."""
        return self.path("claims", submission, item.name if number == 1 else f"{item.name}.{number}")

    def record_path(self, rank: int, attempt: int) -> str:
        """Return the address of the record of one attempt of a rank."""
        return self.path("records", f"{record_name(rank, attempt)}.json")

    def function_path(self, function: str, request_id: str) -> str:
        """Return the address of what a call of a function that planned or summarized the run used."""
        return self.path("functions", f"{function}-{request_id}.json")

    def quantized_path(self, name: str) -> str:
        """Return the address of the network in int8."""
        return self.path("network", name)

    def imported_weights_path(self, sha256: str) -> str:
        """Return the address of the weights file made from the published checkpoint with this digest."""
        return self.path("network", f"{sha256[:16]}.safetensors")

    def log_path(self, rank: int) -> str:
        """Return the address of the output of a rank."""
        return self.path("logs", f"{rank}.log")

    @property
    def catalogue_path(self) -> str:
        """The catalogue, the product of the run."""
        return self.path("catalogue.parquet")

    @property
    def summary_path(self) -> str:
        """Coverage, metrics, totals and cost."""
        return self.path("summary.json")

    @property
    def calibration_path(self) -> str:
        """The calibration on the run's own spectroscopic redshifts, where it was requested."""
        return self.path("calibration.json")

    def plot_path(self, kind: str) -> str:
        """Return the address of the figure of photometric against spectroscopic redshift, "png" or "pdf"."""
        return self.path(f"inference.{kind}")

    def interval_plot_path(self, kind: str) -> str:
        """Return the address of the figure of the coverage of intervals, "png" or "pdf"."""
        return self.path(f"intervals.{kind}")

    @property
    def combined_path(self) -> str:
        """The published keys of all ranks."""
        return self.path("combined_data.json")

    @property
    def results_path(self) -> str:
        """The published metrics."""
        return self.path("Results.json")

    @property
    def result_path(self) -> str:
        """Name of the folder in published records: on S3 its key, without the bucket."""
        return split_s3_uri(self.uri)[1] if is_s3(self.uri) else self.uri

    def published_path(self, rank: int) -> str:
        """Return the address of the published keys of one rank, all attempts together."""
        return self.path(f"{rank}.json")

    @property
    def launcher_path(self) -> str:
        """The process that launched the ranks."""
        return self.path("launcher.json")

    @property
    def accounting_path(self) -> str:
        """What SLURM's accounting reports of the jobs."""
        return self.path("accounting.json")

    def submission_path(self, name: str) -> str:
        """Return the address of a submission to SLURM."""
        return self.path("submissions", f"{name}.json")

    def submission_paths(self) -> list[str]:
        """Return the addresses of all submissions to SLURM."""
        entries = storage.list_files(self.path("submissions"))
        return [self.path("submissions", entry.name) for entry in entries if entry.name.endswith(".json")]

    def submission_folder(self, name: str) -> str:
        """Return the folder for the output of the jobs of a submission."""
        return self.path("submissions", name)

    @property
    def cloud_path(self) -> str:
        """Where in the cloud the run is that this folder is a copy of."""
        return self.path("cloud.json")

    @property
    def payload_path(self) -> str:
        """The published payload of a run in the cloud, with the files of each rank."""
        return self.path("payload.json")

    @property
    def map_items_path(self) -> str:
        """The events with which the ranks of a run in the cloud are invoked."""
        return self.path("items.json")

    @property
    def invocations_path(self) -> str:
        """What CloudWatch reports of the invocations of the functions on Lambda."""
        return self.path("invocations.json")
