"""Test that the notebooks run from top to bottom on small runs, and show the numbers that they are about."""

import ast
import re
from pathlib import Path
from statistics import median

import nbformat
import pytest
from msgspec import UNSET
from nbclient import NotebookClient
from nbformat import NotebookNode

from analysis.formatting import format_statistic
from analysis.notebook import find_published, find_runs, load_evidence
from cosmicai.errors import InputError
from cosmicai.models.weights import DEMO
from cosmicai.ranks.environment import Rank
from cosmicai.runs.demo import create_demo_run
from cosmicai.runs.store import RunFolder
from cosmicai.runs.summarize import summarize
from cosmicai.surveys.synthetic import write_synthetic_survey
from support.helpers import make_run, run_worker

FOLDER = Path(__file__).parents[3] / "analysis/notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
GALAXIES = 300
LOGIC = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.For, ast.While, ast.If, ast.Try, ast.With)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a demo run, and a sweep over the number of ranks, which run one after the other in this process."""
    folder = tmp_path_factory.mktemp("runs")
    demo = create_demo_run(str(folder / "demo"), GALAXIES)
    run_worker(demo, Rank())
    summarize(demo)
    survey = write_synthetic_survey(str(folder / "survey"), GALAXIES, 0, 100)
    for ranks in (1, 2, 4):
        out = folder / f"sweep/partition-2MB/batch-16/world-{ranks}/1"
        run = make_run(survey, DEMO, str(out), batch_size=16, ranks=ranks)
        for rank in range(ranks):
            run_worker(run, Rank(rank, ranks, "local"))
        summarize(run)
    return f"{folder / 'demo/run'} {folder / 'sweep'}"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder for a kernel, which writes to the home folder otherwise."""
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.delenv("COSMICAI_PUBLISHED", raising=False)
    return tmp_path


def outputs(name: str, place: Path) -> list[NotebookNode]:
    """Run a notebook from top to bottom and return the outputs of its cells; raise what a cell raises."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=100, kernel_name="python3", resources={"metadata": {"path": str(place)}}).execute()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def text(found: list[NotebookNode]) -> str:
    """Return all text of the outputs, tables as their cells separated by blanks."""
    read = [output.get("text", "") for output in found]
    read += [value for output in found for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", "\n".join(read)))


def pictures(found: list[NotebookNode]) -> int:
    return sum("image/png" in output.get("data", {}) for output in found)


def test_there_are_six_notebooks():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["00", "01", "02", "03", "04", "05"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_committed_notebook_has_no_output_and_no_logic_of_its_own(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert path.read_text() == nbformat.writes(notebook) + "\n"  # as nbformat writes it
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    for cell in code:
        assert cell.outputs == [] and cell.execution_count is None
        tree = ast.parse(cell.source)
        assert not [node for node in ast.walk(tree) if isinstance(node, (*LOGIC, ast.comprehension))]
    assert len(notebook.cells) > len(code) and all(len(cell.source.splitlines()) <= 12 for cell in code)


def test_from_arrays_to_a_catalogue(place, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(place))
    found = outputs("00_quickstart", place)
    seen = text(found)
    (run,) = place.glob("*/run")
    summary = RunFolder(str(run)).summary()
    assert summary is not None and summary.metrics is not None and summary.metrics.galaxies == 599
    assert "600 of 600 galaxies; complete: True" in seen and "600 galaxies are in both tables" in seen
    assert "array([8, 0, 0, 2, 0], dtype=uint8)" in seen and "src" not in seen
    intervals = summary.intervals
    assert intervals is not UNSET and intervals.coverage is not None
    cell = intervals.coverage.all
    assert (
        f"{cell.galaxies} galaxies: {cell.fractions[0]:.1%} +- {cell.errors[0]:.1%} are in their 68% interval" in seen
    )
    assert summary.metrics.bias is not None
    assert f"599 galaxies: bias {format_statistic(summary.metrics.bias, 599, '+')}, NMAD" in seen
    assert pictures(found) == 3


def test_one_run(ours, place, monkeypatch):
    monkeypatch.setenv("COSMICAI_RUNS", ours)
    found = outputs("01_one_run", place)
    seen, summary = text(found), RunFolder(ours.split()[0]).summary()
    assert summary is not None and summary.metrics is not None
    metrics = summary.metrics
    assert metrics.bias is not None and metrics.precision is not None
    assert "whole" in seen and f"{GALAXIES} galaxies: bias {format_statistic(metrics.bias, GALAXIES, '+')}" in seen
    assert f"NMAD {format_statistic(metrics.precision, GALAXIES)}" in seen
    assert "Time of ranks by phase" in seen and pictures(found) == 6


def test_platforms_with_the_published_values_of_the_package(ours, place, monkeypatch):
    monkeypatch.setenv("COSMICAI_RUNS", ours)
    found = outputs("02_compare_platforms", place)
    seen = text(found)
    assert "0.974674" in seen and "Lambda" in seen
    assert pictures(found) == 4


def test_platforms_with_the_published_results(ours, place, shared, monkeypatch):
    monkeypatch.setenv("COSMICAI_RUNS", ours)
    monkeypatch.setenv("COSMICAI_PUBLISHED", str(shared / "published"))
    found = outputs("02_compare_platforms", place)
    assert "8 of 130 ranks are there" in text(found) and pictures(found) == 4


def test_scaling(ours, place, monkeypatch):
    monkeypatch.setenv("COSMICAI_RUNS", ours)
    found = outputs("03_scaling", place)
    seen = text(found)
    folders = (RunFolder(f"{ours.split()[1]}/partition-2MB/batch-16/world-{ranks}/1") for ranks in (1, 4))
    wall = [folder.summary().totals.wall_seconds for folder in folders]  # type: ignore[union-attr]
    assert f"{format_statistic(wall[0] / wall[1], 1)} times" in seen
    records = RunFolder(f"{ours.split()[1]}/partition-2MB/batch-16/world-4/1").records().values()
    seconds = [record.seconds.working for record in records]
    shown = re.search(r"world-4/1', ([0-9.]+), ([0-9.]+)\)", seen)
    assert shown and float(shown[1]) == pytest.approx(max(seconds) / median(seconds))
    assert float(shown[2]) == pytest.approx(1 - sum(seconds) / 4 / max(seconds))
    assert pictures(found) == 5


def test_cost(ours, place, monkeypatch):
    monkeypatch.setenv("COSMICAI_RUNS", ours)
    found = outputs("04_cost", place)
    seen = text(found)
    # The published dollars of partitions of 25 MB, and the choices for this number of galaxies.
    assert " 25 517 6.55 2.8 0.1581 0.16 " in seen
    assert "choices stay within 600 s and $1." in seen and "python -m launch" in seen
    assert pictures(found) == 3


def test_the_audit_of_the_published_results(place, shared, monkeypatch):
    monkeypatch.setenv("COSMICAI_PUBLISHED", str(shared / "published"))
    found = outputs("05_published_audit", place)
    seen = text(found)
    for text_shown in ("8 of 130 ranks are there", "122 of 130 ranks are there", "659,817 galaxies are there"):
        assert text_shown in seen
    assert seen.count("exactly 1,000 ranks are there") == 4
    assert pictures(found) == 1


def test_addresses_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("COSMICAI_RUNS", "a/run s3://bucket/run:/b/run\n c")
    assert find_runs() == ["a/run", "s3://bucket/run", "/b/run", "c"]
    monkeypatch.setenv("COSMICAI_RUNS", " ")
    monkeypatch.setattr("analysis.notebook.ROOT", tmp_path)
    with pytest.raises(InputError, match=r"no runs to show; set COSMICAI_RUNS to run folders, or make some with"):
        find_runs()
    (tmp_path / "demo/run").mkdir(parents=True)
    assert find_runs() == [str(tmp_path / "demo/run")]
    (tmp_path / "sweep").mkdir()
    assert find_runs() == [str(tmp_path / "demo/run"), str(tmp_path / "sweep")]


def test_a_missing_published_folder_is_reported(ours, tmp_path, monkeypatch):
    monkeypatch.delenv("COSMICAI_PUBLISHED", raising=False)
    with pytest.raises(InputError, match=r"COSMICAI_PUBLISHED is not set; set COSMICAI_PUBLISHED to a folder with the"):
        find_published()
    monkeypatch.setenv("COSMICAI_RUNS", ours)
    assert set(load_evidence().collection.runs["kind"]) == {"run", "figure"}
    monkeypatch.setenv("COSMICAI_PUBLISHED", str(tmp_path / "absent"))
    for function in (find_published, load_evidence):
        with pytest.raises(InputError, match=r"absent is not a folder; set COSMICAI_PUBLISHED to a folder with the"):
            function()
