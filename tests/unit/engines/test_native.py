"""The native encoder against its definition in float64, and what it may not depend on: batches, threads, neighbours."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from cosmicai.engines.native import build, library
from cosmicai.engines.native.library import find_problem, find_variant, load_library
from cosmicai.engines.native.network import SIZES, NativeNetwork, find_unsupported, form_of, list_constants
from cosmicai.engines.openvino.compiled_part import NetworkGraphs, compile_part
from cosmicai.engines.openvino.export import read_folded
from cosmicai.models.checkpoint_import import import_checkpoint
from cosmicai.models.fold import Affine, FoldedBlock, FoldedWeights
from cosmicai.models.weights import DEMO, find_weights
from cosmicai.surveys.shard import open_shard
from support import encoder_in_float64
from support.helpers import random_galaxies

needs_compiler = pytest.mark.skipif(build.find_compiler() is None, reason="no C++ compiler")
needs_float32 = pytest.mark.skipif(find_problem("float32") is not None, reason=str(find_problem("float32")))
# Of features, relative to the largest: rounding alone, halves that lack 8 of 24 bits of their products, and bfloat16.
BOUNDS = {"float32": 5e-6, "bf16x3": 2e-5, "bfloat16": 1e-2}


@dataclass(frozen=True)
class Compiled:
    """A compiled encoder; a twin computes in plain C++ what AMX would, slowly."""

    library: ctypes.CDLL
    bound: float
    is_twin: bool

    def load(self, folded: FoldedWeights) -> NativeNetwork:
        """Return the transformer of a folded network."""
        constants = np.concatenate([np.ravel(values) for values in list_constants(folded)])
        return NativeNetwork(self.library, (*form_of(folded.config)[:2], len(folded.blocks)), constants)


@pytest.fixture(scope="module")
def twins(tmp_path_factory) -> dict[str, Path]:
    """The libraries of the twins by precision."""
    if build.find_compiler() is None:
        pytest.skip("no C++ compiler")
    if not library.read_instructions().issuperset(build.PLAIN_VARIANTS[0].instructions):
        pytest.skip("the native engine needs a processor with avx2+fma for the twins of AMX")
    paths = build.compile_all(tmp_path_factory.mktemp("twins"), build.PLAIN_VARIANTS)
    return {variant.precision: path for variant, path in zip(build.PLAIN_VARIANTS, paths, strict=True)}


@pytest.fixture(scope="module", params=["float32", "bf16x3", "bfloat16", "bf16x3 twin", "bfloat16 twin"])
def compiled(request) -> Compiled:
    precision, _, twin = request.param.partition(" ")
    if twin:
        path = request.getfixturevalue("twins")[precision]
    elif problem := find_problem(precision):
        pytest.skip(problem)
    else:
        variant = find_variant(precision)
        assert variant
        path = build.SOURCE / variant.file
    return Compiled(load_library(path), BOUNDS[precision], bool(twin))


@pytest.fixture(scope="module")
def demo() -> FoldedWeights:
    return read_folded(find_weights(DEMO))


@pytest.fixture(scope="module")
def network(compiled: Compiled, demo: FoldedWeights) -> NativeNetwork:
    return compiled.load(demo)


@pytest.fixture(scope="module")
def image() -> np.ndarray[Any, np.dtype[np.float32]]:
    return random_galaxies(130, seed=3).image


def test_features_are_those_of_the_definition_in_float64(compiled, demo, network, image):
    expected = encoder_in_float64.encode(demo, image)
    assert np.abs(network.encode(image) - expected).max() < compiled.bound * np.abs(expected).max()


def keep_parts(block: FoldedBlock, *names: str) -> FoldedBlock:
    """Return a block that adds nothing to the tokens but what these layers, the last ones of its parts, return."""
    others = {"proj", "convolution_out", "mlp_out"}.difference(names)
    zeros = {name: Affine(*(0 * values for values in astuple(getattr(block, name)))) for name in others}
    return dataclasses.replace(block, **zeros)


@pytest.mark.parametrize("part", ["embedding", "proj", "convolution_out", "mlp_out"])
def test_each_part_is_that_of_the_definition_in_float64(compiled, demo, image, part):
    blocks = () if part == "embedding" else (keep_parts(demo.blocks[0], part),)
    folded = dataclasses.replace(demo, blocks=blocks)
    expected = encoder_in_float64.encode(folded, image[:37])
    found = compiled.load(folded).encode(image[:37])
    assert np.abs(found - expected).max() < compiled.bound * np.abs(expected).max()


def test_the_published_redshifts(compiled, shared, tmp_path):
    """With the rest of the network in OpenVINO; on 32 galaxies where a twin computes, which is slow."""
    import_checkpoint(str(shared / "upstream/checkpoint.pt")).save(str(tmp_path / "w.safetensors"))
    graphs, count = NetworkGraphs(find_weights(str(tmp_path / "w.safetensors"))), 32 if compiled.is_twin else 512
    with open_shard(str(shared / "upstream/partition_512.pt")) as shard:
        galaxies = shard.read(0, count)
    encoded = compiled.load(graphs.folded()).encode(galaxies.image)
    rest = compile_part(graphs, "rest", "float32", count).create_infer_request()
    found = rest.infer([encoded, galaxies.image, galaxies.magnitude.astype(np.float32)])[0]
    allowed = {5e-6: 1e-5, 2e-5: 2e-5}.get(compiled.bound, 1e-2)
    assert np.abs(found - np.load(shared / "upstream/expected.npz")["z_float64"][:count]).max() <= allowed


def test_a_galaxy_has_the_same_bits_in_every_batch(compiled, network, image):
    whole = network.encode(image)
    sizes = (1, 15, 16, 17, 31, 32, 33, 64, 65, 129) if compiled.is_twin else range(1, len(image) + 1)
    for size in sizes:
        assert np.array_equal(network.encode(image[:size]), whole[:size]), size
        assert np.array_equal(network.encode(image[-size:]), whole[-size:]), size


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_any_number_of_threads_gives_the_same_bits(network, image, threads):
    whole = network.encode(image[:70])
    with ThreadPoolExecutor(threads) as pool:
        for encoded in pool.map(network.encode, [image[:70]] * 8):
            assert np.array_equal(encoded, whole)


def test_nan_and_infinity_stay_with_their_galaxy(network, image):
    whole, broken = network.encode(image), image.copy()
    broken[3, 2, 5, 7], broken[50, 0, 0, 0], broken[51] = np.nan, np.inf, 1e30
    encoded, rest = network.encode(broken), np.setdiff1d(np.arange(len(image)), [3, 50, 51])
    assert np.isnan(encoded[[3, 50, 51]]).all()
    assert np.array_equal(encoded[rest], whole[rest])


def test_a_forked_process_computes_the_same(network, image):
    whole = network.encode(image)
    with ThreadPoolExecutor(2) as pool:  # which the child does not have
        list(pool.map(network.encode, [image] * 2))
        child = os.fork()
        if child == 0:
            os._exit(0 if np.array_equal(network.encode(image), whole) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_constants_that_do_not_make_the_network_are_refused(compiled, demo):
    constants = np.concatenate([np.ravel(values) for values in list_constants(demo)])
    for form, values in ((form_of(demo.config), constants[1:]), ((65, 256, 3), constants)):
        with pytest.raises(ValueError, match="constants do not make a network of"):
            NativeNetwork(compiled.library, form, values)


def test_what_the_code_has_no_loops_for_is_named(demo):
    assert find_unsupported(demo.config) is None
    assert (demo.config.width, demo.config.mlp_width) in SIZES
    assert find_unsupported(replace(demo.config, norm_eps=1e-5)) == "norm_eps 1e-05"
    assert find_unsupported(replace(demo.config, mlp_width=128)) == "width 64 and mlp_width 128"


@pytest.mark.parametrize("precision", BOUNDS)
def test_a_processor_without_the_instructions_is_named(monkeypatch, precision):
    monkeypatch.setattr(library, "read_instructions", lambda: frozenset({"sse4_2"}))
    assert find_variant(precision) is None
    variants = [variant for variant in build.VARIANTS if variant.precision == precision]
    needed = " or ".join("+".join(variant.instructions) for variant in variants)
    built = any((build.SOURCE / variant.file).exists() for variant in variants)
    assert find_problem(precision) == (
        f"the native engine needs a processor with {needed} for {precision}"
        if built
        else f"the native engine is not built here for {precision} (g++ and `make install` build it)"
    )


@needs_float32
def test_a_system_that_does_not_permit_tiles_is_named(monkeypatch):
    monkeypatch.setattr(library, "read_instructions", lambda: frozenset(build.VARIANTS[2].instructions))
    monkeypatch.setattr(library, "may_use_tiles", lambda: False)
    assert find_problem("bf16x3") == "the native engine needs a system that permits AMX for bf16x3"
    monkeypatch.setattr(library, "may_use_tiles", lambda: True)
    assert find_variant("bf16x3") == build.VARIANTS[2]


@needs_float32
def test_instructions_can_be_hidden():
    script = (
        "from cosmicai.engines.native.library import *; "
        "print(find_problem('float32') or find_variant('float32').name, find_problem('bf16x3'), sep='|')"
    )
    for hidden, expected in (
        ("avx512f,avx2", "the native engine needs a processor"),
        ("avx512f,amx_tile", "avx2|the native engine needs a "),
    ):
        environment = os.environ | {library.HIDDEN: hidden}
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert done.stdout.startswith(expected), done.stderr


@needs_compiler
@needs_float32
@pytest.mark.parametrize("variant", [find_variant("float32"), build.PLAIN_VARIANTS[0]], ids=["float32", "bf16x3"])
def test_sanitizers_find_nothing(tmp_path, variant):
    """Addresses and undefined behaviour, of the code for the instructions that run here."""
    program = tmp_path / "sanitized"
    source = Path(encoder_in_float64.__file__).with_name("sanitized_encoder.cpp")
    command = [
        "g++", "-std=c++17", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wno-psabi",
        *variant.options, "-O1", "-g1", f"-I{build.SOURCE}", str(source), "-o", str(program), "-pthread",
    ]  # fmt: skip
    compiled = subprocess.run(command, capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stderr
    done = subprocess.run([program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_a_compiler_nothing_is_built(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert build.compile_all(tmp_path) == [] and list(tmp_path.iterdir()) == []


@needs_compiler
def test_the_polynomial_of_gelu_is_that_of_its_script():
    script = build.SOURCE / "gelu.py"
    printed = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
    assert printed.split() == (build.SOURCE / "gelu.h").read_text().split()
