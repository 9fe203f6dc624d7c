"""Test that a part is read only as what it is: the whole predictions of its own item and plan."""

import io
from pathlib import Path

import h5py
import numpy as np
import pytest

from cosmicai.errors import InputError
from cosmicai.ranks.environment import Rank
from cosmicai.runs.store import RunFolder
from cosmicai.runs.summarize import summarize
from support.helpers import make_run, make_survey, random_galaxies, run_worker, tiny_weights


@pytest.fixture
def run(tmp_path) -> RunFolder:
    survey = make_survey(tmp_path / "s", random_galaxies(60), 20)
    weights = tiny_weights(tmp_path / "w.safetensors")
    run = make_run(survey, weights, str(tmp_path / "run"), engine="reference", batch_size=20)
    run_worker(run, Rank(threads=1))
    return run


def refusal(run: RunFolder) -> str:
    """Return why the summary leaves a part out, whose galaxies it counts as missing."""
    summary = summarize(run)
    assert not summary.complete and summary.coverage.missing == 20
    assert isinstance(summary.left_out, tuple)
    (problem,) = summary.left_out
    assert problem.endswith("; it was set aside, finish the run with --resume")
    return problem


def test_a_part_of_another_item_is_named_and_done_again(run):
    first, second, _ = (Path(run.part_path(item)) for item in run.plan().items)
    good = first.read_bytes()
    first.write_bytes(second.read_bytes())
    assert refusal(run).startswith(f"{first} belongs to another item")
    assert not first.exists() and len(run.parts()) == 2
    run_worker(RunFolder(run.uri), Rank(threads=1))
    assert first.read_bytes() == good and summarize(run).complete


def test_a_changed_value_dtype_or_format_is_named(run):
    path = Path(run.part_path(run.plan().items[1]))
    good = path.read_bytes()

    def change(edit) -> str:
        buffer = io.BytesIO(good)
        with h5py.File(buffer, "r+") as file:
            edit(file)
        path.write_bytes(buffer.getvalue())
        return refusal(run).removeprefix(str(path))

    def replace(file: h5py.File, name: str, values: np.ndarray) -> None:
        del file[name]
        file[name] = values

    for name in ("objid", "redshift_phot", "redshift_spec", "flag"):
        assert "differ from their digest" in change(lambda file, name=name: file[name].write_direct(file[name][:] + 1))
    assert "another dtype" in change(lambda file: replace(file, "redshift_phot", file["redshift_phot"][:].astype("f8")))
    assert "another item" in change(lambda file: replace(file, "flag", file["flag"][:-1]))
    assert "its format is" in change(lambda file: file.attrs.modify("format", "cosmicai-part/1"))
    with pytest.raises(InputError, match="belongs to another plan; remove it and finish the run with --resume"):
        change(lambda file: file.attrs.modify("plan", "0" * 64))


def test_any_flipped_bit_of_the_values_is_named(run):
    item = run.plan().items[1]
    path = Path(run.part_path(item))
    good = path.read_bytes()
    with h5py.File(path) as file:
        offsets = [
            file[name].id.get_offset() + byte for name in ("objid", "redshift_phot", "flag") for byte in range(20)
        ]
    for offset in offsets:
        data = bytearray(good)
        data[offset] ^= 1 << offset % 8
        path.write_bytes(data)
        with pytest.raises(InputError, match="differ from their digest"):
            run.read_part(run.plan(), item)


def test_parts_of_format_1_are_read(run):
    for item in run.plan().items:
        with h5py.File(run.part_path(item), "r+") as file:
            file.attrs["format"] = "cosmicai-part/1"
            del file.attrs["digest"], file.attrs["item"]
    assert summarize(run).complete
