"""The process in which moto serves S3, IAM and Step Functions, and real Lambda runtimes serve the functions.

Started by pipeline.py with a file of settings. Prints its port as soon as it serves, and ends when its input does.
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
from support.lambda_runtimes import Answer, Function, Pool

REDRIVE = "-redrive-"  # in the name of a state machine that goes on where another one's execution has failed
WAIT = 0.02  # of the time that a Retry asks for: nothing here gets better by waiting

Environ = dict[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], Any]


def redrive_count(machine: str) -> int:
    """How often an execution of the state machine of this name was redriven."""
    return int(machine.rpartition("-")[2]) if REDRIVE in machine else 0


class Service:
    """A WSGI application: moto's, with Lambda's invocations answered by our runtimes."""

    def __init__(self, moto: Any, settings: dict[str, Any], port: int) -> None:
        self._moto, self._folder = moto, Path(settings["folder"])
        network, numbers = f"127.{port >> 8}.{port & 255}", count(1)  # no other server has this one's port
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
            return self._invoked(path.split("/")[3].rpartition(":")[2], json.loads(body), start_response)
        if environ["REQUEST_METHOD"] == "PUT" and "HTTP_IF_NONE_MATCH" in environ:
            with self._conditional:  # moto looks first and writes then, so that two of these could both succeed
                return list(self._moto(environ, start_response))
        return self._moto(environ, start_response)

    def stop(self) -> None:
        """Ends all runtimes."""
        for pool in self._pools.values():
            pool.stop()

    def _invoked(self, name: str, event: Any, start_response: StartResponse) -> list[bytes]:
        """Answers as Lambda does, or as Lambda does not when it is overloaded or breaks off the connection."""
        function = name.rpartition("-")[2]
        event = self._redriven(event)
        ordered = take_fault(self._folder / "orders", function, event, LAMBDA_FAULTS)
        if ordered == "throttle":
            return _refused("429 Too Many Requests", "TooManyRequestsException", "Rate Exceeded.", start_response)
        if ordered == "twice":
            twice = threading.Thread(target=self._delivered, args=(name, event))
            twice.start()
            answer = self._delivered(name, event)
            twice.join()
        else:
            answer = self._delivered(name, event)
        if ordered == "lose the answer":
            return _refused("500 Internal Server Error", "ServiceException", "An error occurred.", start_response)
        headers = [("Content-Type", "application/json"), ("x-amzn-RequestId", answer.request_id)]
        if answer.failed:
            headers.append(("X-Amz-Function-Error", "Unhandled"))
        return _answered("200 OK", headers, answer.body, start_response)

    def _delivered(self, name: str, event: Any) -> Answer:
        answer = self._pools[name].invoke(json.dumps(event).encode())
        line = {"function": name.rpartition("-")[2], "event": event, "request_id": answer.request_id}
        line |= {"answer": answer.body, "failed": answer.failed}
        with self._lock, (self._folder / "invocations.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        return answer

    def _redriven(self, event: Any) -> Any:
        """The event as AWS would have it: what is another execution here is there the same one, redriven."""
        execution = event.get("execution") if isinstance(event, dict) else None
        if not execution:
            return event
        *account, _, machine, name = execution["Id"].split(":")
        if not (redrives := redrive_count(machine)):
            self._executions[execution["Id"]] = execution
            return event
        first = self._executions[":".join([*account, "execution", machine.partition(REDRIVE)[0], name])]
        return event | {"execution": first | {"RedriveCount": redrives, "RedriveTime": datetime.now(UTC).isoformat()}}


def _refused(status: str, code: str, message: str, start_response: StartResponse) -> list[bytes]:
    headers = [("Content-Type", "application/json"), ("x-amzn-ErrorType", code), ("x-amzn-RequestId", "")]
    return _answered(status, headers, {"message": message, "Type": "Service"}, start_response)


def _answered(status: str, headers: list[tuple[str, str]], body: Any, start_response: StartResponse) -> list[bytes]:
    data = json.dumps(body).encode()
    start_response(status, [*headers, ("Content-Length", str(len(data)))])
    return [data]


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    port = listener.getsockname()[1]
    # Moto reads this as it is imported, and many items of a map make it recurse in every thread.
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
    retrier_decl.time = SimpleNamespace(sleep=lambda seconds: time.sleep(seconds * WAIT))
    # What else takes most of the time: a new connection and a look at moto's folders for each request, and a new
    # client of boto3 for each invocation.
    MotoRequestHandler.protocol_version = "HTTP/1.1"
    MotoRequestHandler.disable_nagle_algorithm = True
    modules = list(backends.list_of_moto_modules())
    backends.list_of_moto_modules = lambda: modules
    client = functools.cache(lambda_eval_utils.boto_client_for)
    lambda_eval_utils.boto_client_for = lambda service, region, state_credentials: client(region, service)
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
    os._exit(0)  # whatever moto still executes


if __name__ == "__main__":
    main()
