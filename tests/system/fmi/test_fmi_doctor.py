"""`python -m fmi doctor`: its diagnostics of servers, secrets and NATs."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

from cosmicai.bench.nat_lab.networks import Nat
from support.rendezvous import SECRET, rendezvous_server
from support.rendezvous import internet as internet

NUMBER = re.compile(r"[+-]?[0-9]+([.,][0-9]+)*")


def doctor(
    endpoint: object,
    *options: str,
    secret: bytes = SECRET,
    run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run,
) -> tuple[int, dict[str, str]]:
    """Return its exit code, and the message of each diagnostic with `#` for numbers."""
    command = [sys.executable, "-m", "fmi", "doctor", str(endpoint), *options]
    done = run(command, capture_output=True, text=True, env=os.environ | {"FMI_SECRET": secret.decode()})
    assert done.stderr == ""
    lines = (re.split(" {2,}", line, maxsplit=1) for line in done.stdout.splitlines())
    return done.returncode, {name: re.sub(" +", " ", NUMBER.sub("#", message)) for name, message in lines}


SUCCESS = {
    "reachable": "ok #:# answers in # ms",
    "clock": "ok the server's clock differs by # s, with an uncertainty of # s",
    "NAT": "ok none: the server sees the local address #:#",
    "authenticated": "ok with the secret; the counter answers in # us",
    "connection": "ok private: # bytes there and back in # us, # MB/s",
    "relay": "ok relay: # bytes there and back in # us, # MB/s",
}


def test_all_diagnostics_pass_on_one_machine():
    with rendezvous_server() as server:
        assert doctor(server.endpoint) == (0, SUCCESS)


def test_a_server_without_a_secret_is_reported():
    with rendezvous_server(secret=b"") as server:
        expected = "ok without a secret, which this server does not need; the counter answers in # us"
        assert doctor(server.endpoint, secret=b"") == (0, SUCCESS | {"authenticated": expected})


@pytest.mark.parametrize(
    ("secret", "message"),
    [
        (b"", "FAILED the server needs a secret; set FMI_SECRET to it"),
        (b"another", "give all ranks and the server the same one in FMI_SECRET"),
    ],
)
def test_the_reason_of_a_refusal_is_reported(secret, message):
    with rendezvous_server() as server:
        code, found = doctor(server.endpoint, secret=secret)
    assert code == 1
    assert found["authenticated"].endswith(message)
    assert set(SUCCESS) - set(found) == {"connection", "relay"}


def test_without_a_server_nothing_else_is_diagnosed():
    with socket.socket() as unused:  # bound, so that no other process listens here
        unused.bind(("127.0.0.1", 0))
        code, found = doctor(f"127.0.0.1:{unused.getsockname()[1]}")
    assert code == 1
    assert list(found) == ["reachable"]
    assert found["reachable"].startswith("FAILED no rendezvous server answers at #:#")


def test_an_invalid_endpoint_is_one_sentence():
    done = subprocess.run([sys.executable, "-m", "fmi", "doctor", "here:"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "'here:' is not the address of a rendezvous server; expected HOST:PORT" in done.stderr
    assert "Traceback" not in done.stderr


NATS = {
    None: "ok none: the server sees the local address #:#",
    Nat(): "ok #:# is #:# to the server on all its ports, so hole punching works",
    Nat(random=True): "ok #:# is #:# to the server and #:# to its port #, so hole punching cannot work",
}


@pytest.mark.parametrize("nat", NATS, ids=str)
def test_the_kind_of_nat_is_reported(internet, nat):
    host, here = internet.host(), internet.host(nat)
    with rendezvous_server("--health-port", "10001", host="0.0.0.0", popen=host.popen) as server:
        endpoint = f"{host.address}:{server.endpoint.port}"
        code, found = doctor(endpoint, "--health-port", "10001", run=here.run)
        assert (code, found) == (0, SUCCESS | {"NAT": NATS[nat]})
        if nat == Nat():
            hint = "no definite answer without access to port # of the server"
            guess = f"the NAT keeps ports, so hole punching may work ({hint})"
            code, found = doctor(endpoint, "--health-port", "9", run=here.run)
            assert (code, found["NAT"]) == (0, f"? #:# is #:# to the server; {guess}")
