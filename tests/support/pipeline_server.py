"""The process in which moto serves S3, IAM and Step Functions, and real Lambda runtimes serve the functions.

It is started by pipeline.py with a file of settings, prints its port as soon as it serves, and ends with its input.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

from support.fault_orders import LAMBDA_FAULTS, take_fault
from support.lambda_runtimes import Function, Pool, Response

REDRIVE = "-redrive-"  # in the name of a state machine that continues where an execution of another one failed
WAIT = 0.02  # share of the time of a Retry: waiting has no effect here

Environ = dict[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], Any]


def redrive_count(machine: str) -> int:
    """Return how often an execution of the state machine of this name was redriven."""
    return int(machine.rpartition("-")[2]) if REDRIVE in machine else 0


class Service:
    """A WSGI application: moto's, with invocations of Lambda served by real runtimes."""

    def __init__(self, moto: Any, settings: dict[str, Any], port: int) -> None:
        self._moto, self._folder = moto, Path(settings["folder"])
        network, numbers = f"127.{port >> 8}.{port & 255}", count(1)  # unique, as the port of this server is
        self._pools = {
            values["name"]: Pool(settings["emulator"], Function(**values), self._folder / "logs", network, numbers)
            for values in settings["functions"]
        }
        self._executions: dict[str, dict[str, Any]] = {}
        self._lock, self._conditional = threading.Lock(), threading.Lock()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        path = unquote(environ["PATH_INFO"])
        if path.startswith("/2015-03-31/functions/") and path.endswith("/invocations"):
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            return self._invoke(path.split("/")[3].rpartition(":")[2], json.loads(body), start_response)
        if environ["REQUEST_METHOD"] == "PUT" and "HTTP_IF_NONE_MATCH" in environ:
            with self._conditional:  # moto checks before it writes, so that two of these could both succeed
                return list(self._moto(environ, start_response))
        return self._moto(environ, start_response)

    def stop(self) -> None:
        """Stop all runtimes."""
        for pool in self._pools.values():
            pool.stop()

    def _invoke(self, name: str, event: Any, start_response: StartResponse) -> list[bytes]:
        """Respond as Lambda does, also as when it is overloaded or loses the connection."""
        function = name.rpartition("-")[2]
        event = self._restore_execution(event)
        fault = take_fault(self._folder / "orders", function, event, LAMBDA_FAULTS)
        if fault == "throttle":
            return _refuse("429 Too Many Requests", "TooManyRequestsException", "Rate Exceeded.", start_response)
        if fault == "twice":
            second = threading.Thread(target=self._deliver, args=(name, event))
            second.start()
            response = self._deliver(name, event)
            second.join()
        else:
            response = self._deliver(name, event)
        if fault == "lose the answer":
            return _refuse("500 Internal Server Error", "ServiceException", "An error occurred.", start_response)
        headers = [("Content-Type", "application/json"), ("x-amzn-RequestId", response.request_id)]
        if response.failed:
            headers.append(("X-Amz-Function-Error", "Unhandled"))
        return _respond("200 OK", headers, response.body, start_response)

    def _deliver(self, name: str, event: Any) -> Response:
        response = self._pools[name].invoke(json.dumps(event).encode())
        line = {"function": name.rpartition("-")[2], "event": event, "request_id": response.request_id}
        line |= {"answer": response.body, "failed": response.failed}
        with self._lock, (self._folder / "invocations.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        return response

    def _restore_execution(self, event: Any) -> Any:
        """Return the event as on AWS, where another execution of this server is the same one, redriven."""
        execution = event.get("execution") if isinstance(event, dict) else None
        if not execution:
            return event
        *account, _, machine, name = execution["Id"].split(":")
        if not (redrives := redrive_count(machine)):
            self._executions[execution["Id"]] = execution
            return event
        first = self._executions[":".join([*account, "execution", machine.partition(REDRIVE)[0], name])]
        return event | {"execution": first | {"RedriveCount": redrives, "RedriveTime": datetime.now(UTC).isoformat()}}


def _refuse(status: str, code: str, message: str, start_response: StartResponse) -> list[bytes]:
    headers = [("Content-Type", "application/json"), ("x-amzn-ErrorType", code), ("x-amzn-RequestId", "")]
    return _respond(status, headers, {"message": message, "Type": "Service"}, start_response)


def _respond(status: str, headers: list[tuple[str, str]], body: Any, start_response: StartResponse) -> list[bytes]:
    data = json.dumps(body).encode()
    start_response(status, [*headers, ("Content-Length", str(len(data)))])
    return [data]


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    port = listener.getsockname()[1]
    # Moto reads this when it is imported, and maps of many items make it recurse deeply in every thread.
    os.environ["MOTO_PORT"] = str(port)
    sys.setrecursionlimit(100_000)
    threading.stack_size(512 * 2**20)
    from moto import backends
    from moto.core.config import default_user_config
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from moto.stepfunctions.parser.asl.component.common.retry import retrier_decl
    from moto.stepfunctions.parser.asl.component.state.exec.state_task import lambda_eval_utils
    from werkzeug.serving import make_server

    default_user_config["stepfunctions"]["execute_state_machine"] = True
    retrier_decl.time = SimpleNamespace(sleep=lambda seconds: time.sleep(seconds * WAIT))  # type: ignore[assignment, attr-defined]
    # Otherwise most of the time goes into a new connection and a scan of moto's folders per request, and a new client
    # of boto3 per invocation.
    MotoRequestHandler.protocol_version = "HTTP/1.1"
    MotoRequestHandler.disable_nagle_algorithm = True
    modules = list(backends.list_of_moto_modules())
    backends.list_of_moto_modules = lambda: modules
    client = functools.cache(lambda_eval_utils.boto_client_for)  # type: ignore[attr-defined]
    lambda_eval_utils.boto_client_for = lambda service, region, state_credentials: client(region, service)  # type: ignore[assignment, attr-defined, misc]
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    for own in settings["functions"]:
        own["environment"] = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"} | own["environment"]
    service = Service(DomainDispatcherApplication(create_backend_app), settings, port)
    server = make_server(
        "127.0.0.1", port, service, threaded=True, request_handler=MotoRequestHandler, fd=listener.fileno()
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(port, flush=True)
    sys.stdin.read()
    service.stop()
    os._exit(0)  # regardless of what moto still executes


if __name__ == "__main__":
    main()
