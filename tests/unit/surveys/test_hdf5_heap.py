"""A damaged global heap, in which HDF5 would search for ever, is refused."""

from pathlib import Path

import pytest

from cosmicai.errors import InputError
from cosmicai.ranks.environment import Rank
from cosmicai.surveys.shard import open_shard
from support.gate import refusal, write_h5
from support.helpers import make_run, make_survey, random_galaxies, run_worker, tiny_weights

NOTHING = bytes(16)  # an object that is free space of no length
AROUND = b"\1\0\1\0\0\0\0\0" + b"\xf0" + b"\xff" * 7  # an object whose end is where it begins


def damage(path: Path, instead: bytes) -> None:
    """Replace the first object of every global heap of a file."""
    pieces = path.read_bytes().split(b"GCOL")
    assert len(pieces) > 1
    path.write_bytes(b"GCOL".join([pieces[0], *(piece[:12] + instead + piece[28:] for piece in pieces[1:])]))


@pytest.mark.parametrize("instead", [NOTHING, AROUND])
def test_a_shard_with_an_endless_heap_is_refused(tmp_path, instead):
    make_survey(tmp_path / "s", random_galaxies(10), 10)
    damage(tmp_path / "s/000001.h5", instead)
    with pytest.raises(InputError, match=r"000001\.h5 is not an HDF5 file or is damaged"):
        open_shard(str(tmp_path / "s/000001.h5"))


@pytest.mark.parametrize("instead", [NOTHING, AROUND])
def test_a_source_of_ingest_with_an_endless_heap_is_refused(tmp_path, instead):
    path = write_h5(tmp_path, attributes={"image": {"unit": "nJy"}})
    damage(path, instead)
    assert refusal(tmp_path, path).startswith("SOURCE is not an HDF5 file or is damaged")


@pytest.mark.parametrize("instead", [NOTHING, AROUND])
def test_a_part_with_an_endless_heap_is_refused(tmp_path, instead):
    survey, weights = make_survey(tmp_path / "s", random_galaxies(10), 10), tiny_weights(tmp_path / "w.safetensors")
    folder = make_run(survey, weights, str(tmp_path / "run"), engine="reference")
    run_worker(folder, Rank())
    plan = folder.plan()
    damage(Path(folder.part_path(plan.items[0])), instead)
    with pytest.raises(InputError, match="is damaged"):
        folder.read_part(plan, plan.items[0])
