"""The native encoder against its definition in float64, and what it may not depend on: batches, threads, neighbours."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from cosmicai.engines.native import build, library
from cosmicai.engines.native.library import find_problem, find_variant
from cosmicai.engines.native.network import SIZES, NativeNetwork, find_unsupported, form_of, list_constants
from cosmicai.engines.openvino.export import read_folded
from cosmicai.models.checkpoint_import import import_checkpoint
from cosmicai.models.fold import FoldedWeights
from cosmicai.models.weights import DEMO, find_weights
from support import encoder_in_float64
from support.helpers import random_galaxies

needs_native = pytest.mark.skipif(find_problem() is not None, reason=f"no native engine: {find_problem()}")


@pytest.fixture(scope="module")
def demo() -> FoldedWeights:
    return read_folded(find_weights(DEMO))


@pytest.fixture(scope="module")
def network(demo: FoldedWeights) -> NativeNetwork:
    return load(demo)


@pytest.fixture(scope="module")
def image() -> np.ndarray[Any, np.dtype[np.float32]]:
    return random_galaxies(130, seed=3).image


def load(folded: FoldedWeights) -> NativeNetwork:
    constants = np.concatenate([np.ravel(values) for values in list_constants(folded)])
    return NativeNetwork(form_of(folded.config), constants)


@needs_native
def test_features_are_those_of_the_definition_in_float64(demo, network, image):
    expected = encoder_in_float64.encode(demo, image)
    assert np.abs(network.encode(image) - expected).max() < 5e-6 * np.abs(expected).max()


@needs_native
def test_features_of_the_published_checkpoint_are_those_of_the_definition_in_float64(shared, tmp_path, image):
    import_checkpoint(str(shared / "upstream/checkpoint.pt")).save(str(tmp_path / "w.safetensors"))
    folded = read_folded(find_weights(str(tmp_path / "w.safetensors")))
    expected = encoder_in_float64.encode(folded, image[:40])
    assert np.abs(load(folded).encode(image[:40]) - expected).max() < 1e-5 * np.abs(expected).max()


@needs_native
def test_a_galaxy_has_the_same_bits_in_every_batch(network, image):
    whole = network.encode(image)
    for size in range(1, len(image) + 1):
        assert np.array_equal(network.encode(image[:size]), whole[:size]), size
        assert np.array_equal(network.encode(image[-size:]), whole[-size:]), size


@needs_native
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_any_number_of_threads_gives_the_same_bits(network, image, threads):
    whole = network.encode(image)
    with ThreadPoolExecutor(threads) as pool:
        for encoded in pool.map(network.encode, [image] * 8):
            assert np.array_equal(encoded, whole)


@needs_native
def test_nan_and_infinity_stay_with_their_galaxy(network, image):
    whole, broken = network.encode(image), image.copy()
    broken[3, 2, 5, 7], broken[50, 0, 0, 0], broken[51] = np.nan, np.inf, 1e30
    encoded, rest = network.encode(broken), np.setdiff1d(np.arange(len(image)), [3, 50, 51])
    assert np.isnan(encoded[[3, 50, 51]]).all()
    assert np.array_equal(encoded[rest], whole[rest])


@needs_native
def test_a_forked_process_computes_the_same(network, image):
    whole = network.encode(image)
    with ThreadPoolExecutor(2) as pool:  # which the child does not have
        list(pool.map(network.encode, [image] * 2))
        child = os.fork()
        if child == 0:
            os._exit(0 if np.array_equal(network.encode(image), whole) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@needs_native
def test_constants_that_do_not_make_the_network_are_refused(demo):
    constants = np.concatenate([np.ravel(values) for values in list_constants(demo)])
    for form, values in ((form_of(demo.config), constants[1:]), ((65, 256, 3), constants)):
        with pytest.raises(ValueError, match="constants do not make a network of"):
            NativeNetwork(form, values)


def test_what_the_code_has_no_loops_for_is_named(demo):
    assert find_unsupported(demo.config) is None
    assert (demo.config.width, demo.config.mlp_width) in SIZES
    assert find_unsupported(replace(demo.config, norm_eps=1e-5)) == "norm_eps 1e-05"
    assert find_unsupported(replace(demo.config, mlp_width=128)) == "width 64 and mlp_width 128"


def test_a_processor_without_the_instructions_is_named(monkeypatch):
    monkeypatch.setattr(library, "read_instructions", lambda: frozenset({"sse4_2"}))
    assert find_variant() is None
    needed = "avx512f+avx512dq+avx512bw+avx512vl+fma or avx2+fma"
    built = any((build.SOURCE / variant.file).exists() for variant in build.VARIANTS)
    assert find_problem() == (
        f"the native engine needs a processor with {needed}"
        if built
        else "the native engine is not built here (g++ and `make install` build it)"
    )


@needs_native
def test_instructions_can_be_hidden():
    script = "from cosmicai.engines.native.library import *; print(find_problem() or find_variant().name)"
    for hidden, expected in (("avx512f,avx2", "the native engine needs a processor with"), ("avx512f", "avx2")):
        environment = os.environ | {library.HIDDEN: hidden}
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert done.stdout.startswith(expected), done.stderr


@pytest.mark.skipif(build.find_compiler() is None, reason="no C++ compiler")
@needs_native
def test_sanitizers_find_nothing(tmp_path):
    """Addresses and undefined behaviour, of the code for the instructions that run here."""
    variant, program = find_variant(), tmp_path / "sanitized"
    assert variant
    source = Path(encoder_in_float64.__file__).with_name("sanitized_encoder.cpp")
    command = [
        "g++", "-O0", "-std=c++17", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wno-psabi",
        *variant.options, f"-I{build.SOURCE}", str(source), "-o", str(program), "-pthread",
    ]  # fmt: skip
    compiled = subprocess.run(command, capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stderr
    done = subprocess.run([program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_a_compiler_nothing_is_built(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert build.compile_all(tmp_path) == [] and list(tmp_path.iterdir()) == []


@pytest.mark.skipif(build.find_compiler() is None, reason="no C++ compiler")
def test_the_polynomial_of_gelu_is_that_of_its_script():
    script = build.SOURCE / "gelu.py"
    printed = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
    assert printed.split() == (build.SOURCE / "gelu.h").read_text().split()
