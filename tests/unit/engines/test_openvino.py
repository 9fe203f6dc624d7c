"""The CPU engine: the network's own numbers, whatever the threads, batches and processes; without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch

from cosmicai.engines import registry as choosing
from cosmicai.engines.base import Choice, inner_batch, pieces
from cosmicai.engines.openvino.compiled_cache import cache_folder, cached
from cosmicai.engines.openvino.engine import OpenVINOEngine
from cosmicai.engines.openvino.graph import build_encoder, build_rest
from cosmicai.engines.registry import choose, open_engine
from cosmicai.errors import InputError
from cosmicai.models.checkpoint_import import import_checkpoint
from cosmicai.models.config import AstroMAEConfig
from cosmicai.models.fold import fold
from cosmicai.models.weights import find_weights, from_network, load_weights
from cosmicai.ranks.environment import Rank
from cosmicai.runs.create import begin
from cosmicai.runs.summary import summarize
from cosmicai.surveys.shard import open_shard
from cosmicai.worker.loop import work
from support.helpers import TINY, make_survey, random_galaxies, run, tiny_weights
from support.network_configs import MORE
from support.networks import galaxies, random_network


@pytest.mark.parametrize("config", MORE.values(), ids=MORE.keys())
def test_the_graphs_are_the_network(config: AstroMAEConfig) -> None:
    network = random_network(config)
    folded, (image, magnitude) = fold(from_network(network, {})), galaxies(config, 6)
    with torch.inference_mode():
        expected = network.double()(image.double(), magnitude).numpy()
    core, exact = openvino.Core(), {"INFERENCE_PRECISION_HINT": "f32"}
    encoded = core.compile_model(build_encoder(folded, 6), "CPU", exact)([image.numpy()])[0]
    rest = core.compile_model(build_rest(folded, 6), "CPU", exact)
    found = rest([encoded, image.numpy(), magnitude.numpy().astype(np.float32)])[0]
    assert found.shape == (6,) and found.dtype == np.float32
    assert np.abs(found - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_weights(tmp_path_factory.mktemp("weights") / "w.safetensors")


def test_a_float32_engine_gives_the_published_predictions(shared: Path, tmp_path: Path) -> None:
    import_checkpoint(str(shared / "upstream/checkpoint.pt")).save(str(tmp_path / "w.safetensors"))
    with open_shard(str(shared / "upstream/partition_512.pt")) as shard:
        galaxies = shard.read(0, 512)
    expected = np.load(shared / "upstream/expected.npz")
    file = find_weights(str(tmp_path / "w.safetensors"))
    for name in ("openvino", "reference"):
        choice, _, _ = choose(file, name, "float32", "cpu", 512)
        found = open_engine(choice, file, 2).predict(galaxies.image, galaxies.magnitude)
        for kind in ("z_float32", "z_float64"):
            assert np.abs(found - expected[kind]).max() <= 1e-5, (name, kind)


def test_threads_callers_and_inner_batches_leave_every_bit_as_it_is(weights: str) -> None:
    file, galaxies = find_weights(weights), random_galaxies(300)
    found = set()
    for threads, batch in ((1, 64), (2, 64), (3, 64), (2, 32), (2, 128)):
        engine = open_engine(Choice("openvino", "float32", "cpu", batch), file, threads)
        with ThreadPoolExecutor(4) as callers:
            rows = pieces(300, 100)
            parts = callers.map(lambda own, e=engine: e.predict(galaxies.image[own], galaxies.magnitude[own]), rows)
            found |= {b"".join(part.tobytes() for part in parts)}
    assert len(found) == 1


@pytest.mark.parametrize("count", [1, 63, 64, 65, 130])
def test_the_ragged_end_of_a_batch_is_right(weights: str, count: int) -> None:
    file, galaxies = find_weights(weights), random_galaxies(130)
    engine = open_engine(Choice("openvino", "float32", "cpu", 64), file, 2)
    whole = engine.predict(galaxies.image, galaxies.magnitude)
    found = engine.predict(galaxies.image[:count], galaxies.magnitude[:count])
    assert np.array_equal(found, whole[:count])


@pytest.mark.parametrize(
    ("batch", "largest", "inner"),
    [(512, 64, 64), (100, 64, 50), (1, 64, 1), (65, 64, 33), (512, 128, 128), (129, 64, 43)],
)
def test_no_piece_is_filled_up_in_vain(batch: int, largest: int, inner: int) -> None:
    assert inner_batch(batch, largest) == inner
    assert sum(rows.stop - rows.start for rows in pieces(batch, inner)) == batch
    assert len(pieces(batch, inner)) == -(-batch // largest)


def test_a_network_is_compiled_once_and_its_inner_batch_is_measured_once(tmp_path: Path) -> None:
    file = find_weights(tiny_weights(tmp_path / "w.safetensors", seed=12))
    first, _, _ = choose(file, "openvino", None, None, 512)
    files = {path: path.stat().st_mtime_ns for path in cache_folder().iterdir() if file.sha256[:16] in path.name}
    assert first.inner_batch in (64, 128)
    assert choose(file, "openvino", None, None, 512)[0] == first
    open_engine(first, file, 2)
    assert files == {path: path.stat().st_mtime_ns for path in cache_folder().iterdir() if path in files}
    measured = [json.loads(path.read_text()) for path in files if path.suffix == ".json"]
    assert [list(map(int, found["galaxies_per_second"])) for found in measured] == [[64, 128]]
    assert not list(cache_folder().glob(".*"))


def test_a_damaged_compiled_network_is_made_anew(tmp_path: Path) -> None:
    file, galaxies = find_weights(tiny_weights(tmp_path / "w.safetensors", seed=11)), random_galaxies(64)
    choice = Choice("openvino", "float32", "cpu", 64)
    expected = open_engine(choice, file, 1).predict(galaxies.image, galaxies.magnitude)
    paths = [path for path in cache_folder().iterdir() if file.sha256[:16] in path.name]
    assert len(paths) == 2
    for path in paths:
        whole = path.read_bytes()
        for damaged in (b"", b"nonsense", whole[: len(whole) // 2]):
            path.unlink()
            path.write_bytes(damaged)
            found = open_engine(choice, file, 1).predict(galaxies.image, galaxies.magnitude)
            assert np.array_equal(found, expected)
            assert len(path.read_bytes()) > 0.9 * len(whole)


def test_a_compiled_network_with_other_numbers_is_not_trusted(tmp_path: Path) -> None:
    file, galaxies = find_weights(tiny_weights(tmp_path / "w.safetensors", seed=13)), random_galaxies(64)
    choice = Choice("openvino", "float32", "cpu", 64)
    expected = open_engine(choice, file, 1).predict(galaxies.image, galaxies.magnitude)
    [path] = cache_folder().glob(f"{file.sha256[:16]}-rest-*.blob")
    whole = bytearray(path.read_bytes())
    weight = load_weights(file.uri).tensors["magnitude_head.0.weight"].tobytes()
    place = whole.index(weight)
    whole[place : place + len(weight)] = np.full(len(weight) // 4, 1000, np.float32).tobytes()
    path.unlink()
    path.write_bytes(whole)  # sound in form
    assert np.array_equal(open_engine(choice, file, 1).predict(galaxies.image, galaxies.magnitude), expected)
    assert path.read_bytes() != whole


def test_nonsense_is_not_written_and_the_run_can_be_finished(
    tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    survey = make_survey(tmp_path / "s", random_galaxies(5000), 5000)
    folder = begin(survey, weights, str(tmp_path / "run"), engine="openvino")
    sane, numbers = OpenVINOEngine._infer, count()

    def mad_once(engine: OpenVINOEngine, *inputs: np.ndarray) -> np.ndarray:
        number = next(numbers)  # two threads call this, and each gets its own
        return sane(engine, *inputs) * (1e33 if number == 10 else 1)

    monkeypatch.setattr(OpenVINOEngine, "_infer", mad_once)
    with pytest.raises(InputError, match="OpenVINO computed nonsense in this process, which was not written"):
        work(folder, Rank(threads=2))
    work(folder, Rank(threads=2))
    assert summarize(folder)["complete"]
    again = begin(survey, weights, str(tmp_path / "calm"), engine="openvino")
    work(again, Rank(threads=2))
    assert summarize(again)["catalogue_sha256"] == summarize(folder)["catalogue_sha256"]


def test_large_redshifts_that_the_network_really_gives_are_kept(tmp_path: Path) -> None:
    loud = load_weights(tiny_weights(tmp_path / "w.safetensors", seed=14))
    loud.tensors["redshift_head.2.bias"] += 1000
    loud.save(str(tmp_path / "w.safetensors"))
    file, galaxies = find_weights(str(tmp_path / "w.safetensors")), random_galaxies(100)
    found = open_engine(Choice("openvino", "float32", "cpu", 64), file, 2).predict(galaxies.image, galaxies.magnitude)
    assert (np.abs(found - 1000) < 10).all()


def test_ranks_that_start_at_once_with_an_empty_cache_agree(tmp_path: Path, weights: str) -> None:
    survey = make_survey(tmp_path / "s", random_galaxies(5000), 5000)
    plain = run("infer", survey.uri, "--weights", weights, "--out", str(tmp_path / "one"))
    assert plain.returncode == 0
    # The plan comes from elsewhere: no rank finds anything in this cache.
    begun = run("infer", survey.uri, "--weights", weights, "--out", str(tmp_path / "many"), "--limit-files", "1")
    assert begun.returncode == 0
    for part in (tmp_path / "many" / "parts").iterdir():
        part.unlink()
    fresh = os.environ | {
        "COSMICAI_CACHE": str(tmp_path / "cache"),
        "COSMICAI_WORLD_SIZE": "3",
        "COSMICAI_THREADS": "1",
    }
    command = [sys.executable, "-m", "cosmicai", "work", str(tmp_path / "many")]
    ranks = [subprocess.Popen(command, env=fresh | {"COSMICAI_RANK": str(rank)}) for rank in range(3)]
    assert [rank.wait() for rank in ranks] == [0, 0, 0]
    assert run("summarize", str(tmp_path / "many")).returncode == 0
    assert (tmp_path / "many/catalogue.parquet").read_bytes() == (tmp_path / "one/catalogue.parquet").read_bytes()
    assert len(list((tmp_path / "cache").iterdir())) == 2


NO_TORCH = """
import sys
from cosmicai.cli.main import cli
code = cli.main(sys.argv[1:], standalone_mode=False)
print(code, sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "torchvision", "pandas"}))
"""


@pytest.mark.parametrize("state", ["cold", "warm"])
def test_a_whole_cpu_run_never_imports_torch(tmp_path: Path, weights: str, state: str) -> None:
    survey = make_survey(tmp_path / "s", random_galaxies(600), 600)
    cache = {"COSMICAI_CACHE": str(tmp_path / "cache")} if state == "cold" else {}
    arguments = ["infer", survey.uri, "--weights", weights, "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH, *arguments], capture_output=True, text=True, env=os.environ | cache
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


QUIET = """
import os, threading
from pathlib import Path
import cosmicai.engines.openvino.engine
threads = {thread.name for thread in threading.enumerate()}
children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
print(threads, children, os.listdir(os.environ["HOME"]))
"""


def test_importing_openvino_reports_to_nobody(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, env=environment)
    assert done.stdout == "{'MainThread'} [] []\n", done.stderr


def test_what_the_processor_cannot_do_falls_back_with_a_notice(tmp_path: Path, weights: str) -> None:
    survey = make_survey(tmp_path / "s", random_galaxies(600), 600)
    options = ("--weights", weights, "--out", str(tmp_path / "run"), "--precision", "bfloat16")
    done = run("infer", survey.uri, *options, ONEDNN_MAX_CPU_ISA="AVX2")
    assert done.returncode == 0, done.stderr
    assert "this processor is not made for bfloat16; the run is in float32" in done.stderr
    record = json.loads((tmp_path / "run/records/0.json").read_text())
    assert record["precision"] == "float32"
    assert record["precision_check"]["asked"] == "bfloat16" and record["precision_check"]["used"] == "float32"
    again = run("infer", survey.uri, *options, "--resume", ONEDNN_MAX_CPU_ISA="AVX2")
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(("isa", "fast"), [("AVX2", False), ("", True)])
def test_int8_is_for_processors_that_are_faster_in_it(weights: str, isa: str, fast: bool) -> None:
    flags = Path("/proc/cpuinfo").read_text()
    expected = fast and ("avx512f" in flags or "avx_vnni" in flags)
    code = "from cosmicai.engines.openvino.engine import has_fast_int8; print(has_fast_int8())"
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": isa}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == f"{expected}\n"


def test_automatic_takes_openvino_without_a_gpu_and_says_why(weights: str) -> None:
    file = find_weights(weights)
    choice, batch_size, notices = choose(file, "auto", None, "cpu", None)
    assert (choice.engine, choice.precision, choice.device, batch_size) == ("openvino", "float32", "cpu", 512)
    assert len(notices) == 1 and notices[0].startswith("engine openvino: ")


def test_where_openvino_cannot_run_the_reference_does(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "missing_for_openvino", lambda: "OpenVINO needs /proc, which is not mounted")
    choice, _, notices = choose(find_weights(weights), "auto", None, "cpu", None)
    assert choice.engine == "reference" and notices[0].endswith("and OpenVINO needs /proc, which is not mounted")
    with pytest.raises(InputError, match="needs /proc, which is not mounted; use --engine reference"):
        choose(find_weights(weights), "openvino", None, None, None)


@pytest.mark.parametrize(
    ("engine", "device", "refused"),
    [("auto", None, True), ("cuda", None, True), ("reference", "cuda", True), ("auto", "cpu", False),
     ("openvino", None, False), ("reference", None, False)],
)  # fmt: skip
def test_an_image_without_cuda_refuses_to_leave_gpus_idle(
    weights: str, monkeypatch: pytest.MonkeyPatch, engine: str, device: str | None, refused: bool
) -> None:
    monkeypatch.setenv("COSMICAI_IMAGE_VARIANT", "cpu")
    monkeypatch.setattr(choosing, "visible_gpus", lambda: 2)
    if refused:
        with pytest.raises(InputError, match="2 GPUs are visible and this image was built without CUDA; build another"):
            choose(find_weights(weights), engine, None, device, None)
    else:
        assert choose(find_weights(weights), engine, None, device, None)[0].device == "cpu"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("abacus", None, None), "there is no engine 'abacus'; expected one of auto, openvino, cuda, reference"),
        (("reference", "bfloat16", None), "the engine reference has no precision bfloat16; expected float32"),
        (("openvino", "tf32", None), "the engine openvino has no precision tf32"),
        (("openvino", None, "cuda"), "the engine openvino has no device cuda; expected cpu"),
    ],
)
def test_what_does_not_exist_is_refused(weights: str, asked: tuple[str, str | None, str | None], says: str) -> None:
    with pytest.raises(InputError, match=says):
        choose(find_weights(weights), *asked, 512)


def test_a_network_for_other_galaxies_is_refused_by_every_engine(tmp_path: Path) -> None:
    from cosmicai.models.astromae import AstroMAE

    from_network(AstroMAE(replace(TINY, bands=3)), {}).save(str(tmp_path / "w.safetensors"))
    for engine in ("openvino", "reference"):
        with pytest.raises(InputError, match=r"is for cutouts \(3, 32, 32\) and 5 magnitudes"):
            choose(find_weights(str(tmp_path / "w.safetensors")), engine, None, None, 512)


def test_what_is_cached_is_made_once_and_whole(tmp_path: Path) -> None:
    made = []

    def make() -> bytes:
        made.append(1)
        return b"abc"

    paths = {cached("test-of-the-cache", make) for _ in range(3)}
    assert [path.read_bytes() for path in paths] == [b"abc"] and len(made) == 1


@pytest.mark.parametrize("mode", [0o777, 0o720])
def test_a_cache_that_others_can_write_to_is_not_trusted(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(mode)
    code = "from cosmicai.engines.openvino.compiled_cache import cache_folder; print(cache_folder())"
    environment = {"COSMICAI_CACHE": str(folder), "XDG_CACHE_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment)
    assert done.stdout.strip() == str(tmp_path / "home" / "cosmicai")


def test_in_a_container_the_cache_is_not_in_the_home(tmp_path: Path) -> None:
    code = "from cosmicai.engines.openvino.compiled_cache import cache_folder; print(cache_folder())"
    environment = os.environ | {
        "COSMICAI_IMAGE_VARIANT": "cpu",
        "TMPDIR": str(tmp_path),
        "HOME": str(tmp_path / "home"),
    }
    del environment["COSMICAI_CACHE"]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == str(tmp_path / f"cosmicai-{os.getuid()}")
    assert not (tmp_path / "home").exists()


@pytest.mark.usefixtures("bfloat16")
def test_bfloat16_is_close_to_float32(weights: str) -> None:
    file, galaxies = find_weights(weights), random_galaxies(256)
    exact, rounded = (
        open_engine(Choice("openvino", precision, "cpu", 64), file, 2).predict(galaxies.image, galaxies.magnitude)
        for precision in ("float32", "bfloat16")
    )
    assert 0 < np.abs(exact - rounded).max() <= 0.02 * np.abs(exact).max()
