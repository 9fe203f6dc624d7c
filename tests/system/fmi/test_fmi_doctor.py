"""`python -m fmi doctor`: what it says of servers, secrets and NATs that are there or not."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

from cosmicai.bench.networks import Nat
from support.rendezvous import SECRET, serving
from support.rendezvous import internet as internet

NUMBER = re.compile(r"[+-]?[0-9]+([.,][0-9]+)*")


def doctor(
    endpoint: object,
    *options: str,
    secret: bytes = SECRET,
    run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run,
) -> tuple[int, dict[str, str]]:
    """Its exit code, and what it says of each thing, without figures."""
    command = [sys.executable, "-m", "fmi", "doctor", str(endpoint), *options]
    done = run(command, capture_output=True, text=True, env=os.environ | {"FMI_SECRET": secret.decode()})
    assert done.stderr == ""
    lines = (re.split(" {2,}", line, maxsplit=1) for line in done.stdout.splitlines())
    return done.returncode, {name: re.sub(" +", " ", NUMBER.sub("#", said)) for name, said in lines}


WELL = {
    "reachable": "ok #:# answers in # ms",
    "clock": "ok the server's is # s from this one's, give or take # s",
    "NAT": "ok none: the server sees #:#, as it is here",
    "authenticated": "ok by the secret; the counter answers in # us",
    "to itself": "ok private: # bytes there and back in # us, # MB/s",
    "by relay": "ok relay: # bytes there and back in # us, # MB/s",
}


def test_all_is_well_on_one_machine():
    with serving() as server:
        assert doctor(server.endpoint) == (0, WELL)


def test_a_server_without_a_secret_is_told():
    with serving(secret=b"") as server:
        expected = "ok without a secret, as this server wants it; the counter answers in # us"
        assert doctor(server.endpoint, secret=b"") == (0, WELL | {"authenticated": expected})


@pytest.mark.parametrize(
    ("secret", "said"),
    [
        (b"", "FAILED the server needs a secret; set FMI_SECRET to it"),
        (b"another", "give all ranks and the server the same one in FMI_SECRET"),
    ],
)
def test_who_is_not_let_in_learns_why(secret, said):
    with serving() as server:
        code, found = doctor(server.endpoint, secret=secret)
    assert code == 1
    assert found["authenticated"].endswith(said)
    assert set(WELL) - set(found) == {"to itself", "by relay"}


def test_a_server_that_is_not_there_is_all_that_is_said():
    with socket.socket() as nobody:  # bound, so that nobody else listens here
        nobody.bind(("127.0.0.1", 0))
        code, found = doctor(f"127.0.0.1:{nobody.getsockname()[1]}")
    assert code == 1
    assert list(found) == ["reachable"]
    assert found["reachable"].startswith("FAILED no rendezvous server answers at #:#")


def test_what_is_no_endpoint_is_one_sentence():
    done = subprocess.run([sys.executable, "-m", "fmi", "doctor", "here:"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "'here:' is no address of a rendezvous server; expected HOST:PORT" in done.stderr
    assert "Traceback" not in done.stderr


NATS = {
    None: "ok none: the server sees #:#, as it is here",
    Nat(): "ok #:# is #:# to the server on all its ports, so that punching works",
    Nat(random=True): "ok #:# is #:# to the server and #:# to its port #, so that punching cannot work",
}


@pytest.mark.parametrize("nat", NATS, ids=str)
def test_the_kind_of_nat_is_told(internet, nat):
    host, here = internet.host(), internet.host(nat)
    with serving("--health-port", "10001", host="0.0.0.0", popen=host.popen) as server:
        endpoint = f"{host.address}:{server.endpoint.port}"
        code, found = doctor(endpoint, "--health-port", "10001", run=here.run)
        assert (code, found) == (0, WELL | {"NAT": NATS[nat]})
        if nat == Nat():
            guess = "it keeps ports, so punching may work (port # of the server would tell more)"
            code, found = doctor(endpoint, "--health-port", "9", run=here.run)
            assert (code, found["NAT"]) == (0, f"? #:# is #:# to the server; {guess}")
