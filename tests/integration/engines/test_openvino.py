"""The OpenVINO engine: the network's numbers for any threads, batches and processes, without torch."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from msgspec.structs import replace
from numpy.typing import NDArray

from cosmicai.engines import registry
from cosmicai.engines.base import EngineChoice, choose_inner_batch, split_rows
from cosmicai.engines.openvino import inner_batch
from cosmicai.engines.openvino.compiled_cache import UnusableFile, cache_folder, get_or_create
from cosmicai.engines.openvino.engine import OpenVINOEngine
from cosmicai.engines.openvino.graph import build_encoder, build_rest
from cosmicai.engines.openvino.sealed_file import unseal
from cosmicai.engines.registry import choose_engine, open_engine
from cosmicai.errors import InputError
from cosmicai.models.checkpoint_import import import_checkpoint
from cosmicai.models.config import AstroMAEConfig
from cosmicai.models.fold import fold
from cosmicai.models.weights import WeightsFile, extract_weights, find_weights, load_weights
from cosmicai.ranks.environment import Rank
from cosmicai.runs.summarize import summarize
from cosmicai.surveys.shard import open_shard
from support.helpers import TINY, make_run, make_survey, random_galaxies, run, run_worker, tiny_weights
from support.mutations import mutate
from support.network_configs import MORE
from support.networks import galaxies, random_network

FLOAT32 = EngineChoice("openvino", "float32", "cpu", 64)


@pytest.mark.parametrize("config", MORE.values(), ids=MORE.keys())
def test_the_graphs_compute_the_same_as_the_network(config: AstroMAEConfig) -> None:
    network = random_network(config)
    folded, (image, magnitude) = fold(extract_weights(network, {})), galaxies(config, 6)
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
        choice, _, _ = choose_engine(file, name, "float32", "cpu", 512)
        found = open_engine(choice, file, 2).predict(galaxies.image, galaxies.magnitude)
        for kind in ("z_float32", "z_float64"):
            assert np.abs(found - expected[kind]).max() <= 1e-5, (name, kind)


def test_threads_callers_and_inner_batches_do_not_change_any_bit(weights: str) -> None:
    file, galaxies = find_weights(weights), random_galaxies(300)
    found = set()
    for threads, batch in ((1, 64), (2, 64), (3, 64), (2, 32), (2, 128)):
        engine = open_engine(EngineChoice("openvino", "float32", "cpu", batch), file, threads)
        with ThreadPoolExecutor(4) as callers:
            slices = split_rows(300, 100)
            parts = callers.map(
                lambda rows, e=engine: e.predict(galaxies.image[rows], galaxies.magnitude[rows]), slices
            )
            found |= {b"".join(part.tobytes() for part in parts)}
    assert len(found) == 1


@pytest.mark.parametrize("count", [1, 63, 64, 65, 130])
def test_the_padded_end_of_a_batch_is_correct(weights: str, count: int) -> None:
    file, galaxies = find_weights(weights), random_galaxies(130)
    engine = open_engine(EngineChoice("openvino", "float32", "cpu", 64), file, 2)
    whole = engine.predict(galaxies.image, galaxies.magnitude)
    found = engine.predict(galaxies.image[:count], galaxies.magnitude[:count])
    assert np.array_equal(found, whole[:count])


@pytest.mark.parametrize(
    ("batch", "largest", "inner"),
    [(512, 64, 64), (100, 64, 50), (1, 64, 1), (65, 64, 33), (512, 128, 128), (129, 64, 43)],
)
def test_inner_batches_need_the_least_padding(batch: int, largest: int, inner: int) -> None:
    assert choose_inner_batch(batch, largest) == inner
    assert sum(rows.stop - rows.start for rows in split_rows(batch, inner)) == batch
    assert len(split_rows(batch, inner)) == -(-batch // largest)


def test_a_network_is_compiled_once_and_its_inner_batch_is_measured_once(tmp_path: Path) -> None:
    file = find_weights(tiny_weights(tmp_path / "w.safetensors", seed=12))
    first, _, _ = choose_engine(file, "openvino", None, None, 512)
    files = {path: path.stat().st_mtime_ns for path in cache_folder().iterdir() if file.key[:16] in path.name}
    assert first.inner_batch in (64, 128)
    assert choose_engine(file, "openvino", None, None, 512)[0] == first
    open_engine(first, file, 2)
    assert files == {path: path.stat().st_mtime_ns for path in cache_folder().iterdir() if path in files}
    measured = [json.loads(path.read_text()) for path in files if path.suffix == ".json"]
    assert [list(map(int, record["galaxies_per_second"])) for record in measured] == [[64, 128]]
    assert not list(cache_folder().glob(".*"))


@pytest.mark.parametrize(
    "damaged",
    ["", '{"inner_batch": 64', "[]", "[" * 100_000, '{"inner_batch": "64"}', '{"inner_batch": 64}', "\xff",
     '{"inner_batch": -1, "galaxies_per_second": {}}', '{"inner_batch": 1000000, "galaxies_per_second": {}}',
     '{"inner_batch": 128, "galaxies_per_second": {"64": 32.0}}', '{"inner_batch": 1' + "0" * 400 + "}",
     '{"inner_batch": 64, "galaxies_per_second": {"64": 32.0, "128": 64.0}}',
     '{"inner_batch": 128, "galaxies_per_second": {"64": 32.0, "128": 1e999}}',
     '{"inner_batch": 128, "galaxies_per_second": {"64": -1, "128": 64.0}}', "[" * 10**6],
)  # fmt: skip
def test_a_damaged_measurement_of_inner_batches_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    monkeypatch.setattr(inner_batch, "_time_part", lambda *_: 1.0)  # the larger inner batch is faster
    # Weights of its own: other tests leave measurements of theirs, in other precisions too, in the same cache.
    file = find_weights(tiny_weights(tmp_path / "w.safetensors", seed=15))
    choose_engine(file, "openvino", "float32", None, 512)
    [path] = cache_folder().glob(f"{file.key[:16]}-whole-*.json")
    path.write_bytes(damaged.encode("latin-1"))
    choice, _, _ = choose_engine(file, "openvino", "float32", None, 512)
    assert choice.inner_batch == 128
    assert path.read_text() == '{"inner_batch": 128, "galaxies_per_second": {"64": 32.0, "128": 64.0}}'


@pytest.fixture
def compiled(tmp_path: Path) -> tuple[WeightsFile, NDArray[np.float32], list[Path]]:
    """Return weights, their redshifts of 64 galaxies, and the paths of the two parts in the cache."""
    file, galaxies = find_weights(tiny_weights(tmp_path / "w.safetensors", seed=11)), random_galaxies(64)
    expected = open_engine(FLOAT32, file, 1).predict(galaxies.image, galaxies.magnitude)
    paths = sorted(cache_folder().glob(f"{file.key[:16]}-*.blob"))
    assert len(paths) == 2
    return file, expected, paths


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 64]) + data[place + 1 :]


def hold_nothing(path: Path) -> None:
    path.mkdir()


def hold_a_file(path: Path) -> None:
    path.mkdir()
    (path / "kept").write_bytes(b"kept")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def link_to_a_copy(path: Path) -> None:
    path.with_suffix(".copy").write_bytes(b"cosmicai")
    path.symlink_to(path.with_suffix(".copy"))


def test_a_damaged_compiled_network_is_compiled_again(
    compiled: tuple[WeightsFile, NDArray[np.float32], list[Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    file, expected, paths = compiled
    galaxies = random_galaxies(64)
    for path, other in (paths, paths[::-1]):
        whole = path.read_bytes()
        places = (0, 16, 33, 37, 40, 50, 63, 64, 300, len(whole) // 3, len(whole) // 2, len(whole) - 1)
        flipped = [flip(whole, place) for place in places]
        cut = [whole[: len(whole) // 2], whole[:20], whole + b"0", b"", b"garbage", whole[64:]]
        for damaged in (*flipped, *cut, other.read_bytes()):
            path.write_bytes(damaged)
            found = open_engine(FLOAT32, file, 1).predict(galaxies.image, galaxies.magnitude)
            assert np.array_equal(found, expected)
            assert path.stat().st_size > 0.9 * len(whole) and path.read_bytes() != damaged
            [notice] = capsys.readouterr().err.splitlines()
            assert notice.startswith(f"{path} is made again: it is damaged, ")
    open_engine(FLOAT32, file, 1)
    assert capsys.readouterr().err == ""


def test_no_change_of_a_compiled_network_goes_unnoticed(
    compiled: tuple[WeightsFile, NDArray[np.float32], list[Path]],
) -> None:
    for path in compiled[2]:
        whole, random = path.read_bytes(), np.random.default_rng(0)
        flipped = [flip(whole, place) for place in range(64)]
        for changed in (*flipped, *(mutate(whole, random) for _ in range(200))):
            if changed != whole:
                with pytest.raises(UnusableFile):
                    unseal(path.name, io.BytesIO(changed))
        with pytest.raises(UnusableFile):
            unseal("another.blob", io.BytesIO(whole))


def test_a_damaged_compiled_network_is_compiled_again_when_a_run_is_planned(
    compiled: tuple[WeightsFile, NDArray[np.float32], list[Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    file, _, [path, _] = compiled
    whole = path.read_bytes()
    path.write_bytes(flip(whole, len(whole) // 2))
    choose_engine(file, "openvino", "float32", None, 64)
    open_engine(FLOAT32, file, 1)  # without another notice
    assert capsys.readouterr().err == f"{path} is made again: it is damaged, its bytes differ from their digest\n"


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (os.mkfifo, "it is not a regular file"),
        (hold_nothing, "it is not a regular file"),
        (link_to_itself, "it is a link"),
        (link_to_a_copy, "it is a link"),
    ],
)
def test_what_is_no_file_in_the_place_of_a_compiled_network_is_replaced(
    compiled: tuple[WeightsFile, NDArray[np.float32], list[Path]],
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], None],
    problem: str,
) -> None:
    file, _, [path, _] = compiled
    path.unlink()
    make(path)
    for _ in range(2):
        open_engine(FLOAT32, file, 1)
    assert capsys.readouterr().err == f"{path} is made again: {problem}\n"
    assert not path.is_symlink() and path.is_file()


def test_a_folder_with_files_in_the_place_of_a_compiled_network_stays_and_is_named(
    compiled: tuple[WeightsFile, NDArray[np.float32], list[Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    file, expected, [path, _] = compiled
    path.unlink()
    hold_a_file(path)
    galaxies = random_galaxies(64)
    assert np.array_equal(open_engine(FLOAT32, file, 1).predict(galaxies.image, galaxies.magnitude), expected)
    assert capsys.readouterr().err.splitlines() == [
        f"{path} is made again: it is not a regular file",
        f"the next start takes longer: cannot write {path}: it is a folder where a file was expected",
    ]
    assert (path / "kept").read_bytes() == b"kept"
    shutil.rmtree(path)


def test_without_space_for_the_cache_a_run_goes_on(
    compiled: tuple[WeightsFile, NDArray[np.float32], list[Path]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file, expected, [path, _] = compiled
    path.unlink()

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr(os, "fsync", fail)
    galaxies = random_galaxies(64)
    assert np.array_equal(open_engine(FLOAT32, file, 1).predict(galaxies.image, galaxies.magnitude), expected)
    assert capsys.readouterr().err.startswith(
        f"the next start takes longer: cannot write {path}: no space left on the device; "
    )
    assert not path.exists() and not list(cache_folder().glob(".*"))


def test_wrong_redshifts_are_not_written_and_the_run_can_be_finished(
    tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    survey = make_survey(tmp_path / "s", random_galaxies(5000), 5000)
    folder = make_run(survey, weights, str(tmp_path / "run"), engine="openvino")
    infer, numbers = OpenVINOEngine._infer, count()

    def infer_wrong_once(engine: OpenVINOEngine, *inputs: np.ndarray) -> np.ndarray:
        number = next(numbers)  # unique, though two threads call this
        return infer(engine, *inputs) * (1e33 if number == 10 else 1)

    monkeypatch.setattr(OpenVINOEngine, "_infer", infer_wrong_once)
    with pytest.raises(InputError, match="OpenVINO computed wrong redshifts in this process; they were not written"):
        run_worker(folder, Rank(threads=2))
    run_worker(folder, Rank(threads=2))
    assert summarize(folder).complete
    again = make_run(survey, weights, str(tmp_path / "again"), engine="openvino")
    run_worker(again, Rank(threads=2))
    assert summarize(again).catalogue_sha256 == summarize(folder).catalogue_sha256


def test_large_redshifts_that_the_network_does_predict_are_kept(tmp_path: Path) -> None:
    shifted = load_weights(tiny_weights(tmp_path / "w.safetensors", seed=14))
    shifted.tensors["redshift_head.2.bias"] += 1000
    shifted.save(str(tmp_path / "w.safetensors"))
    file, galaxies = find_weights(str(tmp_path / "w.safetensors")), random_galaxies(100)
    engine = open_engine(EngineChoice("openvino", "float32", "cpu", 64), file, 2)
    found = engine.predict(galaxies.image, galaxies.magnitude)
    assert (np.abs(found - 1000) < 10).all()


def test_ranks_that_start_at_once_with_an_empty_cache_agree(tmp_path: Path, weights: str) -> None:
    survey = make_survey(tmp_path / "s", random_galaxies(5000), 5000)
    plain = run("infer", survey.uri, "--weights", weights, "--out", str(tmp_path / "one"))
    assert plain.returncode == 0
    # The plan was made with another cache: no rank finds anything in this one.
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
    assert {rank.wait() for rank in ranks} <= {0, 3}  # 3 of one that ends before the others
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


def test_importing_openvino_sends_no_telemetry(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, env=environment)
    assert done.stdout == "{'MainThread'} [] []\n", done.stderr


def test_an_unsupported_precision_falls_back_to_float32_with_a_notice(tmp_path: Path, weights: str) -> None:
    survey = make_survey(tmp_path / "s", random_galaxies(600), 600)
    options = ("--weights", weights, "--out", str(tmp_path / "run"), "--precision", "bfloat16")
    done = run("infer", survey.uri, *options, ONEDNN_MAX_CPU_ISA="AVX2")
    assert done.returncode == 0, done.stderr
    assert "this processor has no fast bfloat16; the run is in float32" in done.stderr
    record = json.loads((tmp_path / "run/records/0.json").read_text())
    assert record["precision"] == "float32"
    assert record["precision_check"]["asked"] == "bfloat16" and record["precision_check"]["used"] == "float32"
    again = run("infer", survey.uri, *options, "--resume", ONEDNN_MAX_CPU_ISA="AVX2")
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(("isa", "fast"), [("AVX2", False), ("", True)])
def test_int8_is_for_processors_that_are_faster_in_it(weights: str, isa: str, fast: bool) -> None:
    flags = Path("/proc/cpuinfo").read_text()
    expected = fast and ("avx512f" in flags or "avx_vnni" in flags)
    code = "from cosmicai.engines.openvino.processor import has_fast_int8; print(has_fast_int8())"
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": isa}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == f"{expected}\n"


def test_the_automatic_choice_without_a_gpu_is_openvino_with_the_reason(weights: str) -> None:
    file = find_weights(weights)
    choice, batch_size, notices = choose_engine(file, "auto", None, "cpu", None)
    assert (choice.engine, choice.precision, choice.device, batch_size) == ("openvino", "float32", "cpu", 512)
    assert len(notices) == 1 and notices[0].startswith("engine openvino: ")


def test_where_openvino_cannot_run_the_reference_engine_does(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_openvino_problem", lambda: "OpenVINO needs /proc, which is not mounted")
    choice, _, notices = choose_engine(find_weights(weights), "auto", None, "cpu", None)
    assert choice.engine == "reference" and notices[0].endswith("and OpenVINO needs /proc, which is not mounted")
    with pytest.raises(InputError, match="needs /proc, which is not mounted; use --engine reference"):
        choose_engine(find_weights(weights), "openvino", None, None, None)


@pytest.mark.parametrize(
    ("engine", "device", "refused"),
    [("auto", None, True), ("cuda", None, True), ("reference", "cuda", True), ("auto", "cpu", False),
     ("openvino", None, False), ("reference", None, False)],
)  # fmt: skip
def test_an_image_without_cuda_refuses_to_leave_gpus_idle(
    weights: str, monkeypatch: pytest.MonkeyPatch, engine: str, device: str | None, refused: bool
) -> None:
    monkeypatch.setenv("COSMICAI_IMAGE_VARIANT", "cpu")
    monkeypatch.setattr(registry, "count_visible_gpus", lambda: 2)
    if refused:
        with pytest.raises(InputError, match="2 GPUs are visible and this image was built without CUDA; build another"):
            choose_engine(find_weights(weights), engine, None, device, None)
    else:
        assert choose_engine(find_weights(weights), engine, None, device, None)[0].device == "cpu"


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        (
            ("abacus", None, None),
            "there is no engine 'abacus'; expected one of auto, openvino, native, cuda, reference",
        ),
        (("reference", "bfloat16", None), "the engine reference has no precision bfloat16; expected float32"),
        (("openvino", "tf32", None), "the engine openvino has no precision tf32"),
        (("openvino", None, "cuda"), "the engine openvino has no device cuda; expected cpu"),
    ],
)
def test_engines_precisions_and_devices_that_do_not_exist_are_refused(
    weights: str, requested: tuple[str, str | None, str | None], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        choose_engine(find_weights(weights), *requested, 512)


def test_a_network_for_other_galaxies_is_refused_by_every_engine(tmp_path: Path) -> None:
    from cosmicai.models.astromae import AstroMAE

    extract_weights(AstroMAE(replace(TINY, bands=3)), {}).save(str(tmp_path / "w.safetensors"))
    for engine in ("openvino", "reference"):
        with pytest.raises(InputError, match=r"is for cutouts \(3, 32, 32\) and 5 magnitudes"):
            choose_engine(find_weights(str(tmp_path / "w.safetensors")), engine, None, None, 512)


def test_a_cached_file_is_created_once_and_complete() -> None:
    calls = []

    def make() -> bytes:
        calls.append(1)
        return b"abc"

    found = {get_or_create("test-of-the-cache", make, lambda file: file.read()) for _ in range(3)}
    assert found == {b"abc"} and len(calls) == 1
    assert (cache_folder() / "test-of-the-cache").read_bytes() == b"abc"


def open_to_others(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def open_to_a_group(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o720)


def linked(folder: Path) -> None:
    folder.with_name("real").mkdir(mode=0o700)
    folder.symlink_to(folder.with_name("real"))


@pytest.mark.parametrize("make", [open_to_others, open_to_a_group, linked, os.mkfifo, Path.touch])
def test_a_cache_that_is_not_a_private_folder_is_not_used(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(folder := tmp_path / "own")
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
        open_engine(EngineChoice("openvino", precision, "cpu", 64), file, 2).predict(galaxies.image, galaxies.magnitude)
        for precision in ("float32", "bfloat16")
    )
    assert 0 < np.abs(exact - rounded).max() <= 0.02 * np.abs(exact).max()
