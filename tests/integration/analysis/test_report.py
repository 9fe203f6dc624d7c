"""Test the report: the contents of its page, and how a real browser shows it."""

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from analysis.formatting import format_statistic
from cosmicai.models.weights import DEMO
from cosmicai.runs.provenance import cpu_model
from support.browser import NO_CHROMIUM, browser, has_chromium
from support.calibrated import complete, write_galaxies
from support.helpers import complete_demo, run


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """Return a folder with a whole run of 600 synthetic galaxies, an interrupted one, and their report."""
    folder = tmp_path_factory.mktemp("reported")
    whole = complete_demo(folder / "a & <b>", 600)
    shutil.copytree(whole.uri, folder / "broken")
    part = next((folder / "broken/parts").iterdir())
    part.unlink()
    done = run("report", "a & <b>/run", "broken", "--out", "report", module="analysis", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done


class _Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_page_is_self_contained(reported):
    folder, _ = reported
    page = _Page(folder / "report/index.html")
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) >= 4
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in images)
    assert all(len(image["alt"]) > 40 for image in images)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object")]
    addresses = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    files = [address for address in addresses if not address.startswith("#")]
    assert files
    assert all((folder / "report" / file).is_file() for file in files)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {address[1:] for address in addresses if address.startswith("#")} <= set(ids)


def test_the_page_shows_what_is_whole_and_what_is_not(reported):
    folder, _ = reported
    with (folder / "report/coverage.csv").open() as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert {name: row["verdict"] for name, row in rows.items()} == {"a & <b>/run": "whole", "broken": "incomplete"}
    text = _Page(folder / "report/index.html").text
    assert "1 whole" in text
    assert "1 incomplete" in text
    assert "a & <b>/run" in text
    summary = json.loads((folder / "a & <b>/run/summary.json").read_text())
    assert f"NMAD {format_statistic(summary['metrics']['precision'], 600)}, bias" in text
    assert "demo weights, trained on synthetic galaxies" in text
    with (folder / "report/machines.csv").open() as file:
        (ours,) = [row for row in csv.DictReader(file) if row["origin"] == "ours"]
    assert (ours["machine"], ours["runs"], ours["threads"]) == (cpu_model(), "2", "1")


def test_the_page_shows_the_coverage_of_intervals(tmp_path):
    survey = write_galaxies(tmp_path / "sky", 900)
    own = complete(survey, DEMO, tmp_path / "own", calibrate_on_spectra=True)
    done = run("report", "own", "--out", "report", module="analysis", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads(Path(own.summary_path).read_text())
    cell = summary["intervals"]["coverage"]["all"]
    with (tmp_path / "report/intervals.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["run"] == "own" and int(row["interval_galaxies"]) == cell["galaxies"]
    for number, percent in enumerate((68, 95)):
        assert float(row[f"coverage_{percent}"]) == cell["fractions"][number]
        assert float(row[f"coverage_{percent}_error"]) == cell["errors"][number]
        assert float(row[f"width_{percent}"]) == cell["widths"][number]
    page = _Page(tmp_path / "report/index.html").text
    assert "Coverage of intervals" in page and summary["intervals"]["calibrated_on"] in page
    assert f"{cell['fractions'][0]:.1%}" in page and f"{cell['fractions'][1]:.1%}" in page


def test_the_page_is_the_same_each_time(reported):
    folder, _ = reported
    done = run("report", "a & <b>/run", "broken", "--out", "again", module="analysis", cwd=folder)
    assert done.returncode == 0
    first, second = (
        re.sub(r"\d{4}-\d\d-\d\dT[0-9:]+", "", (folder / name / "index.html").read_text())
        for name in ("report", "again")
    )
    assert first == second


@pytest.mark.skipif(not has_chromium(), reason=NO_CHROMIUM)
def test_a_browser_shows_the_page_without_scripts_or_network(reported, tmp_path):
    path = reported[0] / "report/index.html"
    with browser(tmp_path / "profile") as page:
        for width in (1200, 400):
            page.open(path, width)
            assert page.console_messages() == []
            assert page.requests() == [path.as_uri()]
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            pictures = page.evaluate(
                "[...document.images].map(one => [one.complete, one.naturalWidth, one.getBoundingClientRect().width])"
            )
            assert len(pictures) >= 4
            assert all(complete and natural > 0 and shown > 250 for complete, natural, shown in pictures)
            # Every cell lies within the window, none is cut, and letters are at least 12 pixels tall.
            cells = page.evaluate(
                "[...document.querySelectorAll('td, th[scope=row]')].filter(one => one.offsetParent).map(one => ["
                "one.getBoundingClientRect().right, one.scrollWidth - one.clientWidth,"
                "parseFloat(getComputedStyle(one).fontSize)])"
            )
            assert len(cells) > 20
            assert all(right <= width and cut <= 1 and size >= 12 for right, cut, size in cells)
            page.screenshot(tmp_path / f"{width}.png")
        assert page.count_pdf_pages() >= 2


def test_a_report_on_a_missing_folder_is_refused(tmp_path):
    done = run("report", str(tmp_path / "nothing"), "--out", str(tmp_path / "report"), module="analysis")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "does not exist" in done.stderr
    assert not (tmp_path / "report").exists()
