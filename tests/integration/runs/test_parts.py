"""Test that a part is read only as what it is: the whole predictions of its own item and plan."""

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from msgspec import UNSET

from cosmicai.errors import InputError
from cosmicai.ranks.environment import Rank
from cosmicai.runs.plan import WorkItem
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

    for name in ("redshift_phot", "flag"):
        assert "differ from their digest" in change(lambda file, name=name: file[name].write_direct(file[name][:] + 1))
    assert "another dtype" in change(lambda file: replace(file, "redshift_phot", file["redshift_phot"][:].astype("f8")))
    assert "another item" in change(lambda file: replace(file, "flag", file["flag"][:-1]))
    assert "its format is" in change(lambda file: file.attrs.modify("format", "cosmicai-part/9"))
    assert "is damaged" in change(lambda file: file.attrs.modify("format", "cosmicai-part/1"))
    with pytest.raises(InputError, match="belongs to another plan; remove it and finish the run with --resume"):
        change(lambda file: file.attrs.modify("plan", "0" * 64))


def test_any_flipped_bit_of_the_values_is_named(run):
    item = run.plan().items[1]
    path = Path(run.part_path(item))
    good = path.read_bytes()
    with h5py.File(path) as file:
        offsets = [file[name].id.get_offset() + byte for name in ("redshift_phot", "flag") for byte in range(20)]
    for offset in offsets:
        data = bytearray(good)
        data[offset] ^= 1 << offset % 8
        path.write_bytes(data)
        with pytest.raises(InputError, match="differ from their digest"):
            run.read_part(run.plan(), item)


def write_old_part(run: RunFolder, item: WorkItem, version: int) -> None:
    """Write the part of an item again as earlier versions did, with ids and spectroscopic redshifts."""
    path, plan, part = run.part_path(item), run.plan(), run.read_part(run.plan(), item)
    shard = plan.shards[item.shard].name
    ids, spec = np.array([b"J1", b""] * 10), np.linspace(0, 1, 20)
    columns = {"objid": ids, "redshift_phot": part.redshift_phot, "redshift_spec": spec, "flag": part.flag}
    digest = hashlib.sha256(f"{plan.digest} {item.name} {shard}".encode())
    with h5py.File(path, "w") as file:
        file.attrs.update(format=f"cosmicai-part/{version}", plan=plan.digest, shard=shard)
        file.attrs.update(start=item.start, stop=item.stop)
        for name, column in columns.items():
            digest.update(f" {name} {column.dtype.str} 20 ".encode() + column.tobytes())
            file[name] = column
        if version == 2:
            file.attrs.update(item=item.name, digest=digest.hexdigest())


@pytest.mark.parametrize(("version", "unchecked"), [(1, 3), (2, UNSET)])
def test_parts_of_earlier_versions_are_read(run, version, unchecked):
    new = summarize(run)
    for item in run.plan().items:
        write_old_part(run, item, version)
    old = summarize(run)
    assert old.complete and old.catalogue_sha256 == new.catalogue_sha256
    assert old.unchecked_parts == unchecked and new.unchecked_parts is UNSET
    with h5py.File(run.part_path(run.plan().items[0]), "r+") as file:
        file["objid"][3] = b"J9"
    assert summarize(run).complete == (version == 1)


def test_parts_that_are_read_at_the_same_time_are_not_mixed_up(run):
    plan = run.plan()
    alone = [run.read_part(plan, item).redshift_phot.tolist() for item in plan.items]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda item: run.read_part(plan, item).redshift_phot.tolist(), plan.items * 50))
    assert together == alone * 50 and len(set(map(tuple, alone))) == 3
