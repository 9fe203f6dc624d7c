"""Runs with the native engine: their redshifts are those of OpenVINO but for rounding, wherever they are computed."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cosmicai.engines.base import EngineChoice
from cosmicai.engines.native import build, engine, library
from cosmicai.engines.native.engine import NativeEngine
from cosmicai.engines.native.library import HIDDEN, find_problem
from cosmicai.engines.openvino.compiled_cache import cache_folder
from cosmicai.engines.registry import choose_engine, open_engine
from cosmicai.errors import InputError
from cosmicai.models.checkpoint_import import import_checkpoint
from cosmicai.models.weights import DEMO, find_weights
from cosmicai.runs.precision import LARGEST_SHIFTS, select_precision
from cosmicai.runs.store import RunFolder
from cosmicai.surveys.shard import open_shard
from cosmicai.surveys.synthetic import write_synthetic_survey
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
    own = open_engine(NATIVE, find_weights(str(tmp_path / "w.safetensors")), 2)
    expected, found = np.load(shared / "upstream/expected.npz"), own.predict(galaxies.image, galaxies.magnitude)
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
@pytest.mark.parametrize("precision", ["float32", "bf16x3", "bfloat16"])
def test_a_rank_without_the_instructions_computes_with_openvino(monkeypatch, precision):
    weights, galaxies = find_weights(DEMO), random_galaxies(70)
    own = open_engine(NATIVE, weights, 1)
    monkeypatch.setattr("cosmicai.engines.native.engine.find_problem", lambda _: "no instructions")
    elsewhere = NativeEngine(weights, replace(NATIVE, precision=precision), 1)
    assert (elsewhere.name, elsewhere.precision) == ("openvino", "float32")
    found, expected = (engine.predict(galaxies.image, galaxies.magnitude) for engine in (elsewhere, own))
    assert np.abs(found - expected).max() < 5e-6


@pytest.fixture
def twins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The engine has the twins of AMX, which any processor with AVX2 runs, and no other libraries."""
    if build.find_compiler() is None:
        pytest.skip("no C++ compiler")
    variants = (build.VARIANTS[1], *build.PLAIN_VARIANTS)
    build.compile_all(tmp_path, variants)
    for module in (library, engine):
        monkeypatch.setattr(module, "SOURCE", tmp_path)
    monkeypatch.setattr(library, "VARIANTS", variants)


@needs_native
def test_reduced_precisions_move_redshifts_less_than_they_may(twins, tmp_path):
    weights, galaxies = find_weights(DEMO), random_galaxies(70)
    expected = open_engine(NATIVE, weights, 1).predict(galaxies.image, galaxies.magnitude)
    for precision, allowed in (("bf16x3", 2e-5), ("bfloat16", 1e-2)):
        choice, _, notices = choose_engine(weights, "native", precision, None, None)
        assert (choice.engine, choice.precision, notices) == ("native", precision, [])
        own = open_engine(choice, weights, 2)
        assert (own.name, own.precision) == ("native", precision)
        moved = np.abs(own.predict(galaxies.image, galaxies.magnitude) - expected).max()
        assert 0 < moved < allowed, precision


@needs_native
@pytest.mark.parametrize(("bound", "passes"), [(1e-4, True), (1e-12, False)])
def test_bf16x3_is_checked_with_a_bound_of_its_own(twins, tmp_path, monkeypatch, bound, passes):
    assert LARGEST_SHIFTS == {"bf16x3": 1e-4}
    monkeypatch.setitem(LARGEST_SHIFTS, "bf16x3", bound)
    survey = write_synthetic_survey(str(tmp_path / "survey"), 64, 1, 64)
    select = partial(
        select_precision, RunFolder(str(tmp_path / "run")), survey, find_weights(DEMO),
        replace(NATIVE, precision="bf16x3"), "bf16x3", False, print,
    )  # fmt: skip
    if passes:
        check = select().check
        assert check is not None and check.used == "bf16x3" and 0 < (check.largest_shift or 0) < bound
    else:
        with pytest.raises(InputError, match=r"moves a galaxy by 0\.0000\d\d \(1 \+ z\), allowed is 1e-12"):
            select()


def test_bf16x3_without_amx_is_refused_in_a_sentence(monkeypatch):
    monkeypatch.setattr(library, "read_instructions", lambda: frozenset({"avx2", "fma"}))
    with pytest.raises(InputError, match=r"^the native engine .* for bf16x3.*; use --engine openvino$"):
        choose_engine(find_weights(DEMO), "native", "bf16x3", None, None)


def test_where_it_cannot_run_it_is_refused_in_a_sentence(tmp_path):
    done = run("infer", "demo", "--out", str(tmp_path / "run"), "--engine", "native", **{HIDDEN: "avx512f,avx2"})  # type: ignore[arg-type]
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
