"""Runs with the native engine: their redshifts are those of OpenVINO but for rounding, wherever they are computed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cosmicai.engines.base import EngineChoice
from cosmicai.engines.native.engine import NativeEngine
from cosmicai.engines.native.library import HIDDEN, find_problem
from cosmicai.engines.openvino.compiled_cache import cache_folder
from cosmicai.engines.registry import choose_engine, open_engine
from cosmicai.errors import InputError
from cosmicai.models.checkpoint_import import import_checkpoint
from cosmicai.models.weights import DEMO, find_weights
from cosmicai.surveys.shard import open_shard
from support.helpers import random_galaxies, run, tiny_weights

needs_native = pytest.mark.skipif(find_problem("float32") is not None, reason=str(find_problem("float32")))
NATIVE = EngineChoice("native", "float32", "cpu", 64)


@needs_native
@pytest.mark.parametrize("threads", [1, 3])
def test_redshifts_are_those_of_openvino_but_for_rounding(threads):
    weights, galaxies = find_weights(DEMO), random_galaxies(200)
    choice, _, notices = choose_engine(weights, "native", None, None, None)
    assert (choice.engine, choice.precision, choice.device, notices) == ("native", "float32", "cpu", [])
    own = open_engine(choice, weights, threads)
    other = open_engine(EngineChoice("openvino", "float32", "cpu", 64), weights, threads)
    assert (own.name, own.precision, own.device, own.peak_gpu_mb()) == ("native", "float32", "cpu", 0.0)
    found, expected = (engine.predict(galaxies.image, galaxies.magnitude) for engine in (own, other))
    assert found.dtype == np.float32 and np.abs(found - expected).max() < 5e-6


@needs_native
def test_the_published_redshifts(shared: Path, tmp_path: Path):
    import_checkpoint(str(shared / "upstream/checkpoint.pt")).save(str(tmp_path / "w.safetensors"))
    with open_shard(str(shared / "upstream/partition_512.pt")) as shard:
        galaxies = shard.read(0, 512)
    engine = open_engine(NATIVE, find_weights(str(tmp_path / "w.safetensors")), 2)
    expected, found = np.load(shared / "upstream/expected.npz"), engine.predict(galaxies.image, galaxies.magnitude)
    for kind in ("z_float32", "z_float64"):
        assert np.abs(found - expected[kind]).max() <= 1e-5


@needs_native
def test_a_run_names_its_engine_and_repeats_bit_by_bit(tmp_path):
    outs = [str(tmp_path / name) for name in ("a", "b")]
    for out in outs:
        done = run("infer", "demo", "--out", out, "--engine", "native", "--limit-files", "1")
        assert done.returncode == 0, done.stderr
    summaries = [json.loads((Path(out) / "summary.json").read_text()) for out in outs]
    assert summaries[0]["catalogue_sha256"] == summaries[1]["catalogue_sha256"]
    [record] = [json.loads(path.read_text()) for path in (Path(outs[0]) / "records").glob("*.json")]
    assert record["engine"] == "native"


@needs_native
def test_a_rank_without_the_instructions_computes_with_openvino(monkeypatch):
    weights, galaxies = find_weights(DEMO), random_galaxies(70)
    own = open_engine(NATIVE, weights, 1)
    monkeypatch.setattr("cosmicai.engines.native.engine.find_problem", lambda _: "no instructions")
    elsewhere = NativeEngine(weights, NATIVE, 1)
    assert elsewhere.name == "openvino"
    found, expected = (engine.predict(galaxies.image, galaxies.magnitude) for engine in (elsewhere, own))
    assert np.abs(found - expected).max() < 5e-6


def test_where_it_cannot_run_it_is_refused_in_a_sentence(tmp_path):
    done = run("infer", "demo", "--out", str(tmp_path / "run"), "--engine", "native", **{HIDDEN: "avx512f,avx2"})
    assert done.returncode == 2 and "the native engine " in done.stderr
    assert done.stderr.strip().endswith("; use --engine openvino") and not (tmp_path / "run/plan.json").exists()


@needs_native
def test_networks_of_other_sizes_are_refused(tmp_path):
    weights = find_weights(tiny_weights(tmp_path / "w.safetensors"))
    with pytest.raises(InputError, match=r"the native engine has no code for a network of .*; use --engine openvino"):
        choose_engine(weights, "native", None, None, None)


@needs_native
def test_a_damaged_file_of_constants_is_made_again():
    weights, galaxies = find_weights(DEMO), random_galaxies(64)
    expected = open_engine(NATIVE, weights, 1).predict(galaxies.image, galaxies.magnitude)
    [path] = cache_folder().glob(f"{weights.key[:16]}-native-float32-*.constants")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    found = open_engine(NATIVE, weights, 1).predict(galaxies.image, galaxies.magnitude)
    assert np.array_equal(found, expected) and path.read_bytes() != content
