"""The complete pipeline on one machine: moto's S3 and Step Functions, the real state machine and Lambda runtimes.

    with pipeline(tmp_path, infer=2) as cloud:
        cloud.s3.put_object(Bucket=cloud.bucket, Key="surveys/s/1.h5", Body=...)
        execution = cloud.result(cloud.start({"bucket": cloud.bucket, ...}))

Tests must not rely on what moto does differently from AWS: it ignores the tolerated failures of a map (a failed item
becomes null and the map succeeds, so that only the summary of the run shows the outcome), does not write the results of
a map, accepts definitions that AWS refuses (state_machine_definition.py), gives every role all permissions, and waits
for a shorter time (pipeline_server.py). As AWS does, it refuses results of more than 256 KB.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from support.emulator import EMULATOR, NO_EMULATOR
from support.fault_orders import add_fault, cancel_faults, list_remaining, run_name
from support.lambda_runtimes import Function, lambda_environment
from support.pipeline_server import REDRIVE, redrive_count
from support.state_machine_definition import find_mistakes, substitute

ROOT = Path(__file__).parents[2]
AWS, TESTS = ROOT / "aws", ROOT / "tests"
DEFINITION = AWS / "state_machine.asl.json"
REGION, ACCOUNT, PREFIX = "us-east-1", "123456789012", "cosmicai"
NAMES = ("initialize", "infer", "summarize")
DEADLINE, POLL = 150.0, 0.1  # seconds for an execution, and between two requests for its state


@dataclass(frozen=True)
class Execution:
    """The outcome of an execution; `cause` is the full text, a JSON object if a function raised."""

    arn: str
    status: str
    error: str | None
    cause: str | None
    output: Any

    @property
    def message(self) -> str:
        """The message of the error."""
        try:
            return str(json.loads(self.cause or "")["errorMessage"])
        except ValueError:  # a text of Step Functions
            return str(self.cause)


@dataclass(frozen=True)
class Invocation:
    """One delivery of an event to a function and its outcome; if it `failed`, the answer has `errorType`."""

    function: str
    event: dict[str, Any]
    request_id: str
    answer: Any
    failed: bool


class Cloud:
    """An account with one deployed pipeline."""

    def __init__(self, endpoint: str, folder: Path, credentials: dict[str, str]) -> None:
        self.endpoint, self.bucket = endpoint, f"test-{secrets.token_hex(8)}"
        self.secrets = tuple(credentials.values())  # which no file and no log may contain
        self._folder, self._numbers = folder, count(1)

    def client(self, service: str) -> Any:
        """Return a client of boto3, regardless of the user's settings."""
        own = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": REGION}
        config = Config(proxies={})
        return boto3.session.Session().client(service, endpoint_url=self.endpoint, config=config, **own)

    @cached_property
    def s3(self) -> Any:
        """The client of S3."""
        return self.client("s3")

    @cached_property
    def states(self) -> Any:
        """The client of Step Functions."""
        return self.client("stepfunctions")

    @cached_property
    def role(self) -> str:
        """The ARN of the state machine's role."""
        return str(self.client("iam").create_role(RoleName="states", AssumeRolePolicyDocument="{}")["Role"]["Arn"])

    @cached_property
    def definition(self) -> str:
        """The definition as it is deployed. Raises AssertionError if AWS would refuse it."""
        functions = {
            f"{name.capitalize()}Function": f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{PREFIX}-{name}"
            for name in NAMES
        }
        text = substitute(DEFINITION, functions | {"Bucket": self.bucket})
        assert find_mistakes(text) == []
        return text

    @cached_property
    def machine(self) -> str:
        """The ARN of the state machine."""
        return self._create_machine(PREFIX, self.definition)

    def _create_machine(self, name: str, definition: str) -> str:
        made = self.states.create_state_machine(name=name, definition=definition, roleArn=self.role)
        return str(made["stateMachineArn"])

    def start(self, payload: Mapping[str, Any]) -> str:
        """Start an execution and return its ARN."""
        started = self.states.start_execution(
            stateMachineArn=self.machine, name=f"run-{next(self._numbers)}", input=json.dumps(payload)
        )
        return str(started["executionArn"])

    def wait_for_result(self, arn: str, timeout: float = DEADLINE) -> Execution:
        """Wait for the end of an execution. Raises TimeoutError with all logs after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (described := self.states.describe_execution(executionArn=arn))["status"] == "RUNNING":
            if time.monotonic() > deadline:
                raise TimeoutError(f"{arn} still runs after {timeout} s: {self.logs()}")
            time.sleep(POLL)
        output = json.loads(described["output"]) if "output" in described else None
        return Execution(arn, described["status"], described.get("error"), described.get("cause"), output)

    def run(self, payload: Mapping[str, Any], timeout: float = DEADLINE) -> Execution:
        """Start an execution and wait for its end."""
        return self.wait_for_result(self.start(payload), timeout)

    def redrive(self, arn: str) -> str:
        """Continue a failed execution at the state that failed, and return the ARN to wait for.

        moto has no RedriveExecution. AWS continues a standard workflow at its failed state with the same input and
        increments the context's RedriveCount. Here a second state machine that starts at that state gets that input,
        and pipeline_server.py passes the context of the first execution and the count to its functions.
        """
        state, state_input = self._failed_state(arn)
        *_, machine, name = arn.split(":")
        redrives = 1 + redrive_count(machine)
        again = json.dumps(json.loads(self.definition) | {"StartAt": state})
        redriven = self._create_machine(f"{PREFIX}{REDRIVE}{name}-{redrives}", again)
        return str(self.states.start_execution(stateMachineArn=redriven, name=name, input=state_input)["executionArn"])

    def _failed_state(self, arn: str) -> tuple[str, str]:
        """Return the state in which an execution ended, and the input of that state."""
        own = json.loads(self.definition)["States"]
        pages = self.states.get_paginator("get_execution_history").paginate(executionArn=arn)
        events = (event.get("stateEnteredEventDetails") for page in pages for event in page["events"])
        last = [entered for entered in events if entered and entered["name"] in own][-1]
        return last["name"], last["input"]

    def inject_fault(
        self,
        what: str,
        result_path: str,
        rank: int | None = None,
        *,
        function: str = "infer",
        times: int | None = 1,
    ) -> None:
        """Inject a fault into the next `times` deliveries (None: all) for a run, for infer of a rank.

        The server can "throttle", deliver an event "twice" at the same time, or "lose the answer"; other faults need
        the functions of faulty_functions.py.
        """
        add_fault(self._folder / "orders", function, run_name(result_path, rank), what, times)

    def cancel_faults(self, result_path: str, rank: int | None = None, *, function: str = "infer") -> None:
        """Cancel all faults of a run, for infer of a rank."""
        cancel_faults(self._folder / "orders", function, run_name(result_path, rank))

    def invocations(self, result_path: str | None = None) -> list[Invocation]:
        """Return the invocations of all functions, for one run or all, in the order of their responses."""
        log = self._folder / "invocations.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        found = [Invocation(**json.loads(line)) for line in lines]
        return [own for own in found if result_path is None or _result_path(own.event) == result_path]

    def logs(self) -> dict[str, str]:
        """Return the output of the functions by the name of the log, which begins with that of the function."""
        return {path.stem: path.read_text(errors="replace") for path in sorted((self._folder / "logs").iterdir())}

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys under a prefix of the bucket."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def read(self, key: str, bucket: str | None = None) -> bytes:
        """Return an object of the bucket, or of another one."""
        return bytes(self.s3.get_object(Bucket=bucket or self.bucket, Key=key)["Body"].read())

    def json(self, key: str, bucket: str | None = None) -> Any:
        """Return the content of a JSON object of the bucket, or of another one."""
        return json.loads(self.read(key, bucket))


def _result_path(event: dict[str, Any]) -> str:
    return str(event["RESULT_PATH"] if "RESULT_PATH" in event else event["execution"]["Input"].get("result_path"))


@contextmanager
def pipeline(
    folder: Path,
    *,
    infer: int = 2,
    memory_mb: int = 2048,
    timeout_s: int = 60,
    module: str = "handlers",
    serve: tuple[str, ...] | None = None,
    extra_environment: Mapping[str, str] | None = None,
) -> Iterator[Cloud]:
    """Run the pipeline with an empty bucket until the end of the block, and yield its account.

    `infer` invocations of that function run at the same time, with this memory and time limit; the others have 3008 MB
    and 900 s. `module` has the three functions, which run in this Python, or are served by the command `serve` with
    the argument `MODULE.FUNCTION`. Skips the test if there is no emulator.
    """
    if not EMULATOR.exists():
        pytest.skip(NO_EMULATOR)
    folder = folder / f"pipeline-{secrets.token_hex(4)}"
    (folder / "logs").mkdir(parents=True)
    credentials = {
        "AWS_ACCESS_KEY_ID": f"ASIA{secrets.token_hex(8).upper()}",
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20),
        "AWS_SESSION_TOKEN": secrets.token_hex(40),
    }
    own = {
        **credentials,
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
        "COSMICAI_CACHE": os.environ["COSMICAI_CACHE"],
        "COSMICAI_MAX_CONCURRENCY": str(infer),
        "COSMICAI_EPHEMERAL_MB": "512",
        "COSMICAI_TEST_ORDERS": str(folder / "orders"),
        "PYTHONPATH": str(TESTS),
        **(extra_environment or {}),
    }
    command = serve or (sys.executable, "-m", "awslambdaric")
    sizes = {"initialize": (1, 3008, 900), "infer": (infer, memory_mb, timeout_s), "summarize": (1, 3008, 900)}
    functions = [
        Function(
            f"{PREFIX}-{name}", [*command, f"{module}.{name}"], str(AWS),
            lambda_environment(f"{PREFIX}-{name}", memory, timeout, REGION) | own, size,
        )
        for name, (size, memory, timeout) in sizes.items()
    ]  # fmt: skip
    settings = {"folder": str(folder), "emulator": str(EMULATOR), "functions": [asdict(own) for own in functions]}
    (folder / "settings.json").write_text(json.dumps(settings))
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "support.pipeline_server", folder / "settings.json"], cwd=TESTS,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=_moto_environment(),
        )  # fmt: skip
    try:
        assert server.stdout
        port = server.stdout.readline().strip()
        assert port, (folder / "server.log").read_text()
        cloud = Cloud(f"http://127.0.0.1:{port}", folder, credentials)
        cloud.s3.create_bucket(Bucket=cloud.bucket)
        yield cloud
        assert list_remaining(folder / "orders") == []  # otherwise a fault of the test did not occur
    finally:
        assert server.stdin
        server.stdin.close()
        server.wait()


def _moto_environment() -> dict[str, str]:
    """Return an environment in which moto's own requests go to itself, regardless of the user's settings."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return ours | {"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "NO_PROXY": "localhost"}
