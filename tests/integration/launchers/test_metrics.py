"""Prometheus metrics of a run, over HTTP and in a file."""

import socket
import urllib.request
from dataclasses import replace

import pytest

from cosmicai.errors import InputError
from cosmicai.launchers import metrics
from cosmicai.launchers.metrics import parse_address, render_metrics, serve_metrics, write_metrics
from cosmicai.launchers.run_status import RankStatus, RunStatus, UnplannedRun, run_status
from cosmicai.runs.record import Failure
from cosmicai.runs.store import RunFolder
from cosmicai.surveys.survey import open_survey
from support.helpers import make_run, make_survey, random_galaxies, tiny_weights
from support.processes import run, start, wait_for_end


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("job")
    return make_survey(folder / "survey", random_galaxies(200), 100).uri, tiny_weights(folder / "w.safetensors")


def rank(number: int, attempt: int, state: str, silent: float, is_at_work: bool = False) -> RankStatus:
    return RankStatus(number, attempt, state, f"n{number}", 2, 100, 25.5, silent, is_at_work)


STATE = RunStatus(
    run="/runs/1", planned=1000, completed=700, missing=300, failed=50, galaxies_per_second=25.5, seconds_left=11.8,
    launcher=None, launcher_state="", at_work=1, may_continue=True, failures=(Failure("0-0-50", "broken", 0, 1),),
    problems=(), ranks=(
        rank(0, 1, "finished", 30.0), rank(1, 1, "running", 500.0), rank(1, 2, "running", 1.25, is_at_work=True),
        rank(2, 1, "running", 400.0),
    ),
)  # fmt: skip
TEXT = """\
# HELP cosmicai_run_complete 1 if every galaxy of the plan is done, else 0
# TYPE cosmicai_run_complete gauge
cosmicai_run_complete{run="/runs/1"} 0.0
# HELP cosmicai_galaxies_planned Galaxies of the plan
# TYPE cosmicai_galaxies_planned gauge
cosmicai_galaxies_planned{run="/runs/1"} 1000.0
# HELP cosmicai_galaxies_done Galaxies with a result
# TYPE cosmicai_galaxies_done gauge
cosmicai_galaxies_done{run="/runs/1"} 700.0
# HELP cosmicai_galaxies_missing Galaxies without a result
# TYPE cosmicai_galaxies_missing gauge
cosmicai_galaxies_missing{run="/runs/1"} 300.0
# HELP cosmicai_galaxies_failed Galaxies of items that could not be done, among the missing ones
# TYPE cosmicai_galaxies_failed gauge
cosmicai_galaxies_failed{run="/runs/1"} 50.0
# HELP cosmicai_galaxies_per_second Rate of the ranks at work
# TYPE cosmicai_galaxies_per_second gauge
cosmicai_galaxies_per_second{run="/runs/1"} 25.5
# HELP cosmicai_work_failures Work items that could not be done
# TYPE cosmicai_work_failures gauge
cosmicai_work_failures{run="/runs/1"} 1.0
# HELP cosmicai_ranks Ranks by state of their last attempt
# TYPE cosmicai_ranks gauge
cosmicai_ranks{run="/runs/1",state="running"} 1.0
cosmicai_ranks{run="/runs/1",state="silent"} 1.0
cosmicai_ranks{run="/runs/1",state="ended"} 1.0
# HELP cosmicai_rank_restarts_total Attempts of ranks after their first
# TYPE cosmicai_rank_restarts_total counter
cosmicai_rank_restarts_total{run="/runs/1"} 1.0
# HELP cosmicai_rank_heartbeat_age_seconds Time since a rank that has not finished wrote its record
# TYPE cosmicai_rank_heartbeat_age_seconds gauge
cosmicai_rank_heartbeat_age_seconds{node="n1",rank="1",run="/runs/1"} 1.25
cosmicai_rank_heartbeat_age_seconds{node="n2",rank="2",run="/runs/1"} 400.0
"""


def test_the_metrics_of_a_run():
    assert render_metrics(lambda: STATE).decode() == TEXT


def test_a_run_without_a_plan_is_not_complete():
    text = render_metrics(lambda: UnplannedRun("/runs/1", "a job writes the plan")).decode()
    assert text == "".join(TEXT.splitlines(keepends=True)[:3])


def test_a_run_that_cannot_be_read_has_no_metrics():
    assert render_metrics(lambda: None) == b""


def test_a_file_for_the_textfile_collector(tmp_path):
    path = tmp_path / "cosmicai.prom"
    path.write_text("old")
    path.with_name("other").mkdir()
    write_metrics(str(path), STATE)
    assert path.read_text() == TEXT
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["cosmicai.prom", "other"]
    assert path.stat().st_mode & 0o444 == 0o444, "node_exporter is another user"


@pytest.mark.parametrize(
    ("text", "address"),
    [("9100", ("127.0.0.1", 9100)), ("0.0.0.0:9100", ("0.0.0.0", 9100)), ("node7:1", ("node7", 1)),
     ("[::1]:65535", ("::1", 65535)), (":80", ("127.0.0.1", 80))],
)  # fmt: skip
def test_addresses(text, address):
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "0", "65536", "x", "-1", "node7:", "node7", "٣"])
def test_what_is_no_port_is_one_sentence(text):
    with pytest.raises(InputError, match=r"^--metrics-port .*: expected a port from 1 to 65535, or HOST:PORT$"):
        parse_address(text)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def fetch(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        text: str = answer.read().decode()
        return text


def test_a_server_reads_the_run_at_each_request(tmp_path, job, monkeypatch):
    port, folder = free_port(), RunFolder(str(tmp_path / "run"))
    with serve_metrics(folder, str(port)):
        assert fetch(port) == "", "there is no plan yet"
        make_run(open_survey(job[0]), job[1], folder.uri)
        assert f'cosmicai_galaxies_done{{run="{folder.uri}"}} 0.0' in fetch(port)
        state = run_status(folder)
        monkeypatch.setattr(metrics, "run_status", lambda run: replace(state, completed=50))
        assert f'cosmicai_galaxies_done{{run="{folder.uri}"}} 50.0' in fetch(port)
    with pytest.raises(OSError, match="refused"):
        fetch(port)


def test_a_port_that_is_taken_is_one_sentence(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        message = rf"^--metrics-port {port} cannot be used \(.*Address already in use.*\); choose another one$"
        with pytest.raises(InputError, match=message), serve_metrics(RunFolder(str(tmp_path)), str(port)):
            pass


def test_a_launcher_serves_the_metrics_of_its_run(tmp_path, job):
    survey, weights = job
    port, out = free_port(), tmp_path / "run"
    arguments = (survey, "--weights", weights, "--out", str(out), "--batch-size", "1", "--procs", "1")
    launcher = start("launch", *arguments, "--metrics-port", str(port))
    text = ""
    while launcher.poll() is None and "cosmicai_galaxies_planned" not in text:
        try:
            text = fetch(port)
        except OSError:  # it has not begun, or has ended
            continue
    assert f'cosmicai_galaxies_planned{{run="{out}"}} 200.0' in text
    assert wait_for_end(launcher)[0] == 0
    done = run("status", str(out), "--metrics", "run.prom", module="launch", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "run.prom").read_text()
    assert f'cosmicai_run_complete{{run="{out}"}} 1.0' in text and 'state="ended"} 1.0' in text


def test_no_run_is_begun_with_a_port_that_cannot_be_used(tmp_path, job):
    survey, weights = job
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        done = run(
            survey, "--weights", weights, "--out", str(tmp_path / "run"), "--metrics-port", port, module="launch"
        )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"launch: --metrics-port {port} cannot be used (")
    assert not (tmp_path / "run").exists()
