"""The scripts of containers/: how they call other programs, what they write and what they print; no image is built."""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from support.scripts import NO_SHELLCHECK, PROJECT, executable, run_script

NO_DPKG = "dpkg-query is not installed"
SCRIPTS = sorted(path.name for path in (PROJECT / "containers").glob("*.sh"))
COMMANDS = ["base.sh", "build.sh", "sif.sh"]
# All programs on PATH besides the fake ones of a test, which excludes builders of this machine.
TOOLS = (
    "awk", "basename", "bash", "cat", "chmod", "cmp", "comm", "cp", "cut", "date", "dirname", "env", "find", "git",
    "grep", "head", "id", "install", "ln", "ls", "mkdir", "mktemp", "mv", "realpath", "rm", "sed", "sh", "sha256sum",
    "sort", "stat", "sync", "tail", "tar", "touch", "tr", "uname", "wc", "xargs",
)  # fmt: skip
FILES = ("LICENSE", "README.md", "pyproject.toml", "requirements.lock", "requirements-dev.lock")
SOURCES = ("src/cosmicai/a b é.py", "src/cosmicai/data/w.safetensors", "aws/handlers.py", "analysis/a.py")
MANIFEST = b'{"schemaVersion": 2}'
DIGEST = f"sha256:{hashlib.sha256(MANIFEST).hexdigest()}"
OTHER = f"sha256:{'f' * 64}"
BASE = re.search("^ARG BASE=(.*)$", (PROJECT / "containers/Containerfile").read_text(), re.MULTILINE)[1]  # type: ignore[index]
TIME = 1700000000
CUDA, CPU = "torch-2.13.0-cp311-none-any.whl", "torch-2.13.0+cpu-cp311-none-any.whl"


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script: str) -> None:
    if not shutil.which("shellcheck"):
        pytest.skip(NO_SHELLCHECK)
    command = ["shellcheck", "--external-sources", f"containers/{script}"]
    checked = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_lines_are_of_at_most_120_characters(script: str) -> None:
    assert max(map(len, (PROJECT / "containers" / script).read_text().splitlines())) <= 120


@pytest.mark.parametrize("script", COMMANDS)
def test_help_is_the_head_comment(script: str, tmp_path: Path) -> None:
    path = PROJECT / "containers" / script
    head = re.match(r"#!/usr/bin/env bash\n((?:#.*\n)+)set -euo pipefail\n", path.read_text())
    assert head is not None
    expected = re.sub("^# ?", "", head[1], flags=re.MULTILINE)
    assert f"containers/{script}" in expected
    for words in [["--help"], ["-h"], *([[]] if script == "base.sh" else [])]:
        done = run_script([path, *words], tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


class FakeSystem:
    """A copy of the scripts, a folder `here` that they run in, and a PATH with nothing but harmless tools."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root, self.here = folder, folder / "checkout", folder / "here"
        self.bin, self.calls, self.archive = folder / "bin", folder / "calls", folder / "archive.tar"
        # A copy of what a builder received: its context, a definition or a root file system.
        self.kept = folder / "kept"
        for path in (self.here, self.bin, folder / "tmp", folder / "tools"):
            path.mkdir()
        for name in TOOLS:
            (folder / "tools" / name).symlink_to(shutil.which(name) or "")
        shutil.copytree(PROJECT / "containers", self.root / "containers", dirs_exist_ok=True)
        oci_archive(self.archive)
        self.environment = {
            "PATH": f"{self.bin}:{folder / 'tools'}", "HOME": folder, "TMPDIR": folder / "tmp", "CALLS": self.calls,
            "KEPT": self.kept, "ARCHIVE": self.archive, "GIT_CEILING_DIRECTORIES": folder,
        }  # fmt: skip

    def program(self, name: str, text: str = "") -> None:
        executable(self.bin / name, f'echo "{name} $*" >>"$CALLS"\nlast=${{!#}}\n{text}')

    def run(self, script: str, *words: object, **variables: object) -> subprocess.CompletedProcess[str]:
        command = [self.root / f"containers/{script}.sh", *words]
        return run_script(command, self.here, **self.environment | variables)

    @property
    def called(self) -> list[str]:
        return plain(self.calls.read_text()) if self.calls.exists() else []

    @property
    def left(self) -> list[str]:
        """The paths of all images, unfinished images and temporary files."""
        pattern = r".*(\.oci\.tar|\.sif|\.partial-).*|checkout/build/context-\w+|tmp/.*"
        paths = [str(path.relative_to(self.folder)) for path in self.folder.rglob("*")]
        return sorted(path for path in paths if re.fullmatch(pattern, path))


def plain(text: str) -> list[str]:
    """Return the lines of a text, with process ids and names of temporary files replaced by fixed ones."""
    text = re.sub(r"(partial|build)-\d+\b", r"\1-N", text)
    return re.sub(r"context-\w{6}\b", "context-X", text).splitlines()


def oci_archive(path: Path, index: str | None = None, manifest: bytes = MANIFEST) -> Path:
    made = {"schemaVersion": 2, "manifests": [{"mediaType": "m", "digest": DIGEST, "size": 7}]}
    content = (json.dumps(made) if index is None else index).encode()
    with tarfile.open(path, "w") as archive:
        blob = f"blobs/{DIGEST.replace(':', '/')}"
        for name, data in {"oci-layout": b"{}", "index.json": content, blob: manifest}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


# Fake podman, buildah and docker for build.sh.
BUILDER = r"""
case $1 in
  build) cp -r "$last" "$KEPT" ;;
  push) cp "$ARCHIVE" "${last#oci-archive:}" ;;
  rmi) echo "untagged" ;;
esac
"""
DOCKER = r"""
case "$1 $2" in
  "buildx version") echo "buildx 1" ;;
  "buildx inspect") exit 1 ;;
  "buildx create") echo "$4" ;;
  "buildx build") cp -r "$last" "$KEPT" && [[ $* =~ dest=([^,]*) ]] && cp "$ARCHIVE" "${BASH_REMATCH[1]}" ;;
esac
"""
PYTHON = r"""
case $* in
  "-m pip --version") echo "pip 1" ;;
  "-m pip download"*" --no-deps "*) copied=("$WHEELS"/torch-*) ;;
  "-m pip download"*" nvidia-"*) copied=("$WHEELS"/nvidia_*) ;;
  "-m pip download"*) copied=("$WHEELS"/numpy-*) ;;
  "- "*) exec "$PYTHON" "$@" ;;
  *) exit 64 ;;
esac
[ "$3" != download ] || cp "${copied[@]}" "$7"
"""


class Checkout(FakeSystem):
    """A checkout with git, an environment whose pip finds a torch and another wheel, and enough space."""

    def __init__(self, folder: Path, committed: Path) -> None:
        shutil.copytree(committed, folder / "checkout")
        super().__init__(folder)
        self.commit = (self.root / ".git/refs/heads/main").read_text().strip()
        self.wheels, self.python = folder / "wheels", self.root / ".venv/bin/python"
        self.wheels.mkdir()
        wheel(self.wheels / "numpy-2-none-any.whl")
        wheel(self.wheels / "nvidia_cudnn_cu13-9-none-any.whl")
        executable(self.python, PYTHON)
        self.environment |= {"WHEELS": self.wheels, "PYTHON": sys.executable}
        self.program("df", "echo Avail; echo 99999")

    def write(self, name: str, text: str = "") -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def build(self, *words: object, variant: str = "cpu", **variables: object) -> subprocess.CompletedProcess[str]:
        torch, *needs = (CUDA, "nvidia-cudnn-cu13==9") if variant == "cuda" else (CPU,)
        if not list(self.wheels.glob("torch-*")):
            wheel(self.wheels / torch, *needs)
        return self.run("build", "--variant", variant, *words, **variables)

    @property
    def builder_calls(self) -> list[str]:
        """The calls of builders."""
        return [call for call in self.called if call.startswith(("docker", "podman", "buildah"))]

    def argument(self, name: str) -> str:
        found = re.findall(rf" --build-arg {name}=(\S*)", "\n".join(self.called))
        assert len(found) == 1
        return found[0]


def git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    alone = {"HOME": folder, "GIT_CONFIG_NOSYSTEM": 1}
    date = {"GIT_COMMITTER_DATE": f"{TIME} +0000", "GIT_AUTHOR_DATE": "1600000000 +0000"}
    done = run_script(["git", *who, *words], folder, **alone | date)
    assert done.returncode == 0, done.stderr


def wheel(path: Path, *needs: str) -> Path:
    lines = ["Metadata-Version: 2.1", f"Name: {path.name.partition('-')[0]}", "Requires-Dist: filelock"]
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("torch/__init__.py", "Requires-Dist: nvidia-nothing")
        file.writestr("torch-2.dist-info/METADATA", "\n".join([*lines, *(f"Requires-Dist: {need}" for need in needs)]))
    return path


@pytest.fixture
def system(tmp_path: Path) -> FakeSystem:
    return FakeSystem(tmp_path)


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with as few of the project's files as the scripts need."""
    root = tmp_path_factory.mktemp("committed")
    shutil.copytree(PROJECT / "containers", root / "containers")
    for name in FILES:
        shutil.copy(PROJECT / name, root)
    for name in (*SOURCES, "tests/test_a.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / ".gitignore").write_text("/build/\n/.venv/\n")
    git(root, "init", "--quiet", "--template=", "--initial-branch=main")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message=All")
    return root


@pytest.fixture
def checkout(tmp_path: Path, committed: Path) -> Checkout:
    made = Checkout(tmp_path, committed)
    made.program("podman", BUILDER)
    return made


def refused(done: subprocess.CompletedProcess[str], *said: str) -> bool:
    """Return whether the script printed exactly these lines and exited with 2."""
    assert plain(done.stderr) == list(said)
    assert (done.returncode, done.stdout) == (2, "")
    return True


WRONG = {
    "unknown option": (["--tag", "a"], "no option --tag; see --help"),
    "a mere word": (["cpu"], "no option cpu; see --help"),
    "an option too many": (["--variant", "cpu", "--no-cache"], "no option --no-cache; see --help"),
    "no such variant": (["--variant", "gpu"], "--variant gpu is none; expected cpu or cuda"),
    "parts of variants": (["--variant", "cp"], "--variant cp is none; expected cpu or cuda"),
    "no weights": (["--weights", "w é.safetensors"], "--weights {here}/w é.safetensors is no file"),
    "weights in a folder": (["--weights", "."], "--weights {here} is no file"),
    **{
        option: (["--base", "a", option], f"{option} needs a value")
        for option in ("--variant", "--base", "--weights", "--out")
    },
}


@pytest.mark.parametrize(("words", "why"), WRONG.values(), ids=WRONG)
def test_invalid_options_of_a_build_are_one_sentence(system: FakeSystem, words: list[str], why: str) -> None:
    assert refused(system.run("build", *words), f"build.sh: {why.format(here=system.here)}")
    assert system.left == system.called == [] and not (system.root / "build").exists()


def test_weights_that_the_image_cannot_contain_are_refused(system: FakeSystem) -> None:
    here = system.here
    for name in ("w.pt", "w.safetensors", "other/w.safetensors"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).touch()
    imported = "is no .safetensors; import it with `cosmicai weights import`"
    assert refused(system.run("build", "--weights", "w.pt"), f"build.sh: --weights {here}/w.pt {imported}")
    done = system.run("build", "--weights", "w.safetensors", "--weights", "other/w.safetensors")
    assert refused(done, "build.sh: two --weights are named w.safetensors; in the image they share a folder")


def test_weights_in_a_missing_folder_are_refused(system: FakeSystem) -> None:
    done = system.run("build", "--weights", "no/w.safetensors")
    assert refused(done, f"build.sh: --weights {system.here}/no/w.safetensors is no file")


@pytest.mark.parametrize("variables", [{}, {"COSMICAI_BUILDER": "buildah"}, {"COSMICAI_BUILDER": "docker"}])
def test_without_a_builder_the_message_names_them(checkout: Checkout, variables: dict[str, str]) -> None:
    if not variables:
        (checkout.bin / "podman").unlink()
    done = checkout.build(**variables)
    why = "there is nothing to build an image with; install docker (with buildx), podman or buildah"
    assert refused(done, f"build.sh: {why}")
    assert checkout.left == checkout.called == []


WITHOUT = {
    "an engine": ('[ "$1" != info ] || { echo "no daemon" && exit 1; }', ["docker buildx version", "docker info"]),
    "buildx": ('[ "$1" != buildx ] || { echo "no command" && exit 1; }', ["docker buildx version"]),
}


@pytest.mark.parametrize(("text", "calls"), WITHOUT.values(), ids=WITHOUT)
def test_docker_is_not_used_without(checkout: Checkout, text: str, calls: list[str]) -> None:
    (checkout.bin / "podman").unlink()
    checkout.program("docker", text)
    checkout.program("buildah", BUILDER)
    done = checkout.build()
    assert done.returncode == 0, done.stderr
    assert plain(done.stderr)[1] == "build.sh: building with buildah"
    assert checkout.builder_calls[: len(calls)] == calls
    assert [call.split()[:2] for call in checkout.builder_calls[len(calls) :]] == [
        ["buildah", "pull"], ["buildah", "build"], ["buildah", "push"], ["buildah", "rmi"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("there", "variables", "taken"),
    [
        ("docker podman buildah", {}, "docker"),
        ("podman buildah", {}, "podman"),
        ("docker podman buildah", {"COSMICAI_BUILDER": "podman"}, "podman"),
        ("docker podman buildah", {"COSMICAI_BUILDER": "buildah"}, "buildah"),
        ("docker podman buildah", {"COSMICAI_BUILDER": ""}, "docker"),
    ],
)
def test_the_first_builder_or_the_named_one_is_used(
    checkout: Checkout, there: str, variables: dict[str, str], taken: str
) -> None:
    (checkout.bin / "podman").unlink()
    for name in there.split():
        checkout.program(name, DOCKER if name == "docker" else BUILDER)
    done = checkout.build(**variables)
    assert done.returncode == 0, done.stderr
    assert {call.split()[0] for call in checkout.builder_calls} == {taken}


def test_only_a_commit_is_built(checkout: Checkout) -> None:
    shutil.rmtree(checkout.root / ".git")
    why = f"build.sh: {checkout.root} is no git checkout, so nothing says of which commit the image would be"
    assert refused(checkout.build(), why)
    git(checkout.root, "init", "--quiet")
    assert refused(checkout.build(), why)
    assert checkout.left == checkout.called == []


@pytest.mark.parametrize("text", ["exit 1", None])
def test_without_pip_the_message_says_how_to_get_it(checkout: Checkout, text: str | None) -> None:
    checkout.python.unlink()
    if text:
        executable(checkout.bin / "python3", text)
    done = checkout.build()
    root = checkout.root
    assert refused(done, f"build.sh: there is no pip to fetch wheels with; run `make install` in {root}")
    assert checkout.left == checkout.called == []


def test_without_an_environment_the_pip_of_python3_is_used(checkout: Checkout) -> None:
    shutil.move(checkout.python, checkout.bin / "python3")
    assert checkout.build().returncode == 0


@pytest.mark.parametrize(("variant", "needed"), [("cpu", 6), ("cuda", 20)])
@pytest.mark.parametrize("short", ["the context", "the image"])
def test_without_enough_space_nothing_is_built(checkout: Checkout, variant: str, needed: int, short: str) -> None:
    few = "case $last in {}) echo {} ;; *) echo 99999 ;; esac"
    where = {"the context": checkout.root / "build/context-X", "the image": checkout.here}[short]
    pattern = "*/context-??????" if short == "the context" else str(checkout.here)
    checkout.program("df", f"echo '   Avail'\n{few.format(pattern, needed * 1024 - 1)}")
    done = checkout.build(variant=variant)
    takes = f"building the {variant} image takes about {needed}; make room"
    assert refused(done, f"build.sh: {needed - 1} GB are free in {where} and {takes}")
    assert checkout.left == checkout.builder_calls == []
    checkout.program("df", f"echo '   Avail'\n{few.format(pattern, needed * 1024)}")
    assert checkout.build(variant=variant).returncode == 0


TORCHES = {
    "cuDNN for cpu": ("cpu", ["nvidia-cudnn-cu13==9; platform_system == 'Linux'"]),
    "CUDA's Python for cpu": ("cpu", ["cuda-bindings<14"]),
    "nothing for cuda": ("cuda", ["numpy"]),
}
MISTAKEN = {
    "cpu": "pip found a torch with CUDA; let it find one for CPUs (PIP_FIND_LINKS), or build --variant cuda",
    "cuda": "pip found a torch for CPUs alone (`pip config list`); let it find one with CUDA, or build --variant cpu",
}


@pytest.mark.parametrize(("variant", "needs"), TORCHES.values(), ids=TORCHES)
def test_the_torch_of_the_other_variant_is_refused(checkout: Checkout, variant: str, needs: list[str]) -> None:
    wheel(checkout.wheels / CUDA, *needs)
    done = checkout.build(variant=variant)
    assert refused(done, "build.sh: fetching wheels", f"build.sh: {MISTAKEN[variant]}")
    assert checkout.left == checkout.builder_calls == []


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_a_refused_torch_is_removed(checkout: Checkout, variant: str) -> None:
    right, wrong = ((CPU, ()), (CUDA, ("nvidia-cudnn-cu13",)))[:: 1 if variant == "cpu" else -1]
    wheel(checkout.wheels / wrong[0], *wrong[1])
    assert checkout.build(variant=variant).returncode == 2
    (checkout.wheels / wrong[0]).unlink()
    wheel(checkout.wheels / right[0], *right[1])
    done = checkout.build(variant=variant)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (checkout.kept / "wheels").glob("torch-*")) == [right[0]]


@pytest.mark.parametrize("earlier", [CUDA, CUDA.replace("2.13", "2.12")])
def test_the_torch_of_an_earlier_build_is_not_reused(checkout: Checkout, earlier: str) -> None:
    """Of two wheels of one version pip would install the one for CPUs."""
    wheel(checkout.wheels / earlier, "nvidia-cudnn-cu13")
    assert checkout.build(variant="cuda").returncode == 0
    (checkout.here / "cosmicai-cuda.oci.tar").unlink()
    (checkout.wheels / earlier).unlink()
    wheel(checkout.wheels / CPU)
    done = checkout.build(variant="cuda")
    assert refused(done, "build.sh: fetching wheels", f"build.sh: {MISTAKEN['cuda']}")
    assert checkout.left == []


FAILING = {
    "torch": ("--no-deps", "pip found no torch; see above"),
    "another": ("--requirement", "pip did not find all wheels; see above"),
    "CUDA": ("nvidia-cudnn-cu13==9", "pip did not find what torch with CUDA needs; see above"),
}


@pytest.mark.parametrize(("option", "why"), FAILING.values(), ids=FAILING)
def test_without_all_wheels_nothing_is_built(checkout: Checkout, option: str, why: str) -> None:
    executable(checkout.python, f'case $* in *{option}*) echo "pip: none" >&2; exit 1 ;; esac\n{PYTHON}')
    assert refused(checkout.build(variant="cuda"), "build.sh: fetching wheels", "pip: none", f"build.sh: {why}")
    assert checkout.left == checkout.builder_calls == []


@pytest.mark.parametrize(("variant", "cuda"), [("cpu", []), ("cuda", ["nvidia-cudnn-cu13==9"])])
def test_the_wheels_are_those_for_the_python_of_the_image(checkout: Checkout, variant: str, cuda: list[str]) -> None:
    executable(checkout.python, f'echo "python $*" >>"$CALLS"\n{PYTHON}')
    assert checkout.build(variant=variant).returncode == 0
    machine, wheels = os.uname().machine, checkout.root / f"build/wheels-{variant}"
    platforms = [f"{name}_{machine}" for name in ("manylinux1", "manylinux2010", "manylinux2014")]
    platforms += [f"manylinux_2_{glibc}_{machine}" for glibc in range(5, 37)]
    how = f"-m pip download -qq --disable-pip-version-check --dest {wheels} --only-binary=:all: --python-version 3.11"
    fetch = " ".join(["python", how, *(f"--platform {name}" for name in platforms)])
    assert [call for call in checkout.called if "download" in call] == [
        f"{fetch} --no-deps torch==2.13.0",
        f"{fetch} --require-hashes --requirement {checkout.root}/requirements.lock "
        f"--requirement {checkout.root}/containers/requirements.lock",
        *(f"{fetch} {need}" for need in cuda),
    ]


NO_MMDEBSTRAP = "there is no mmdebstrap to make a base with; install it (on Debian: apt-get install mmdebstrap)"
MMDEBSTRAP = r"""
for word; do case $word in *.partial-*) partial=$word ;; esac; done
printf half >"$partial"
[ ! -e "${partial%.partial-*}" ] && printf " and whole" >>"$partial"
"""
MADE = "FROM scratch\nADD made.tar /\n"


@pytest.mark.parametrize("builder", ["podman", "docker"])
def test_without_a_registry_and_mmdebstrap_there_is_no_base(checkout: Checkout, builder: str) -> None:
    (checkout.bin / "podman").unlink()
    asked = {"podman": "pull --quiet", "docker": "buildx imagetools inspect"}[builder]
    checkout.program(builder, f'case $* in "{asked}"*) echo one; echo "no route" >&2; exit 1 ;; esac')
    assert refused(
        checkout.build(),
        "build.sh: fetching wheels",
        f"build.sh: {BASE} cannot be had (no route), so a base is made by base.sh",
        f"base.sh: {NO_MMDEBSTRAP}",
    )
    assert checkout.left == [] and checkout.builder_calls[-1] == f"{builder} {asked} {BASE}"


def test_without_a_registry_the_base_is_made(checkout: Checkout) -> None:
    checkout.program("podman", f'case $1 in pull) echo "no route" >&2; exit 1 ;; esac\n{BUILDER}')
    checkout.program("mmdebstrap", f'echo "at $SOURCE_DATE_EPOCH" >>"$CALLS"\n{MMDEBSTRAP}')
    done = checkout.build()
    assert done.returncode == 0, done.stderr
    assert plain(done.stderr)[1] == f"build.sh: {BASE} cannot be had (no route), so a base is made by base.sh"
    assert (checkout.kept / "made.tar").read_text() == "half and whole"
    assert f"at {TIME}" in checkout.called
    text = (checkout.kept / "Containerfile").read_text()
    original = (PROJECT / "containers/Containerfile").read_text()
    staged = "FROM scratch AS compiler\nADD made.tar /\n"
    assert text == original.replace("FROM ${BASE} AS compiler\n", staged).replace("FROM ${BASE}\n", MADE)
    assert MADE in text and staged in text and "--build-arg BASE=" not in "\n".join(checkout.called)


def test_only_the_default_base_is_replaced(checkout: Checkout) -> None:
    checkout.program("podman", f'case $1 in pull) echo "no route" >&2; exit 1 ;; esac\n{BUILDER}')
    checkout.program("mmdebstrap", MMDEBSTRAP)
    assert checkout.build("--base", "mine.tar").returncode == 2
    assert checkout.left == []


@pytest.mark.parametrize("builder", ["podman", "docker"])
def test_a_base_may_be_a_tar_file(checkout: Checkout, builder: str) -> None:
    (checkout.bin / "podman").unlink()
    checkout.program(builder, DOCKER if builder == "docker" else BUILDER)
    (checkout.here / "my base.tar").write_text("mine")
    done = checkout.build("--base", "my base.tar")
    assert done.returncode == 0, done.stderr
    assert (checkout.kept / "made.tar").read_text() == (checkout.here / "my base.tar").read_text() == "mine"
    lines = (checkout.kept / "Containerfile").read_text().splitlines()
    stages = [number for number, line in enumerate(lines) if line.startswith("FROM")]
    assert [lines[number] for number in stages] == ["FROM scratch AS compiler", "FROM scratch"]
    assert {lines[number + 1] for number in stages} == {"ADD made.tar /"}
    calls = "\n".join(checkout.called)
    assert not re.search(r"^podman pull|imagetools|--build-arg BASE=", calls, re.MULTILINE)


def test_a_base_may_be_another_image(checkout: Checkout) -> None:
    assert checkout.build("--base", f"host/debian@{OTHER}").returncode == 0
    assert checkout.builder_calls[0] == f"podman pull --quiet host/debian@{OTHER}"
    assert checkout.argument("BASE") == f"host/debian@{OTHER}"
    assert (checkout.kept / "Containerfile").read_text() == (PROJECT / "containers/Containerfile").read_text()


def arguments(checkout: Checkout, variant: str) -> str:
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    passed = {
        "VARIANT": variant, "COMMIT": checkout.commit, "VERSION": version, "SOURCE": "https://host/x", "BASE": BASE
    }  # fmt: skip
    context = f"{checkout.root}/build/context-X"
    listed = " ".join(f"--build-arg {name}={value}" for name, value in passed.items())
    return f"--file {context}/Containerfile {listed} {context}"


@pytest.mark.parametrize("builder", ["podman", "buildah"])
@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_podman_and_buildah_are_called_alike(checkout: Checkout, builder: str, variant: str) -> None:
    (checkout.bin / "podman").unlink()
    checkout.program(builder, BUILDER)
    git(checkout.root, "remote", "add", "origin", "https://host/x")
    done = checkout.build(variant=variant)
    assert (done.returncode, done.stdout) == (0, f"{DIGEST}\n")
    name, image = f"cosmicai-{variant}.oci.tar", "localhost/cosmicai:build-N"
    assert plain(done.stderr) == [
        "build.sh: fetching wheels", f"build.sh: building with {builder}", f"build.sh: {name}"
    ]  # fmt: skip
    how = f"--quiet --isolation chroot --timestamp {TIME} --format oci --tag {image}"
    assert checkout.builder_calls == [
        f"{builder} pull --quiet {BASE}",
        f"{builder} build {how} {arguments(checkout, variant)}",
        f"{builder} push --quiet {image} oci-archive:{checkout.here}/{name}.partial-N",
        f"{builder} rmi {image}",
    ]
    assert checkout.left == [f"here/{name}"]
    assert (checkout.here / name).read_bytes() == checkout.archive.read_bytes()


@pytest.mark.parametrize("there", [False, True])
def test_docker_builds_with_a_builder_of_its_own(checkout: Checkout, there: bool) -> None:
    checkout.program("docker", DOCKER.replace("exit 1", "echo cosmicai") if there else DOCKER)
    git(checkout.root, "remote", "add", "origin", "https://host/x")
    done = checkout.build(variant="cuda")
    assert done.returncode == 0, done.stderr
    dest = f"{checkout.here}/cosmicai-cuda.oci.tar.partial-N"
    output = f"type=oci,dest={dest},compression=gzip,force-compression=true,rewrite-timestamp=true"
    how = f"--builder cosmicai --provenance=false --build-arg SOURCE_DATE_EPOCH={TIME} --output {output}"
    created = ["docker buildx create --name cosmicai --driver docker-container"]
    assert checkout.builder_calls == [
        "docker buildx version",
        "docker info",
        f"docker buildx imagetools inspect {BASE}",
        "docker buildx inspect cosmicai",
        *([] if there else created),
        f"docker buildx build {how} {arguments(checkout, 'cuda')}",
    ]
    assert checkout.left == ["here/cosmicai-cuda.oci.tar"]


def test_only_the_digest_is_printed_when_docker_creates_a_builder(checkout: Checkout) -> None:
    checkout.program("docker", DOCKER)
    done = checkout.build()
    assert (done.returncode, done.stdout) == (0, f"{DIGEST}\n")


def test_the_output_of_a_builder_goes_to_standard_error(checkout: Checkout) -> None:
    checkout.program("podman", f'echo "$1 said"\n{BUILDER}')
    done = checkout.build()
    assert (done.returncode, done.stdout) == (0, f"{DIGEST}\n")
    assert [line for line in done.stderr.splitlines() if line.endswith(" said")] == ["build said", "push said"]


def test_the_context_has_the_tracked_files_the_wheels_and_the_weights(checkout: Checkout) -> None:
    checkout.write("src/cosmicai/untracked.py")
    checkout.write("containers/untracked")
    checkout.write("requirements-untracked.lock")
    weights = [checkout.here / "w é.safetensors", checkout.folder / "v.safetensors"]
    for path in weights:
        path.write_text(path.name)
    done = checkout.build("--weights", "w é.safetensors", "--weights", weights[1])
    assert done.returncode == 0, done.stderr
    found = {str(path.relative_to(checkout.kept)) for path in checkout.kept.rglob("*") if path.is_file()}
    scripts = [f"containers/{path.name}" for path in (PROJECT / "containers").iterdir() if path.is_file()]
    assert found - {"answer"} == {
        "Containerfile", *(f"project/{name}" for name in [*FILES, *SOURCES, *scripts]),
        "wheels/numpy-2-none-any.whl", f"wheels/{CPU}", "weights/w é.safetensors", "weights/v.safetensors",
    }  # fmt: skip
    assert all((checkout.kept / "weights" / path.name).read_text() == path.name for path in weights)
    assert (checkout.kept / "project/LICENSE").read_bytes() == (PROJECT / "LICENSE").read_bytes()
    assert os.access(checkout.kept / "project/containers/entrypoint.sh", os.X_OK)


def test_without_weights_there_is_an_empty_folder_for_them(checkout: Checkout) -> None:
    assert checkout.build().returncode == 0
    assert list((checkout.kept / "weights").iterdir()) == []


def test_files_readable_by_their_owner_alone_are_readable_by_all_in_the_image(checkout: Checkout) -> None:
    """As after a checkout with umask 077: in the image other users run it."""
    (checkout.here / "w.safetensors").touch()
    for path in [*checkout.root.rglob("*"), checkout.here / "w.safetensors"]:
        if ".git" not in path.parts and not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o700)
    assert checkout.build("--weights", "w.safetensors").returncode == 0
    hidden = [
        str(path.relative_to(checkout.kept)) for part in ("project", "weights")
        for path in (checkout.kept / part).rglob("*") if path.stat().st_mode & 0o044 != 0o044
    ]  # fmt: skip
    assert hidden == []
    assert (checkout.kept / "project/containers/entrypoint.sh").stat().st_mode & 0o011 == 0o011


def test_the_commit_is_named_in_full_and_dirty_if_a_tracked_file_was_changed(checkout: Checkout) -> None:
    git(checkout.root, "tag", "--annotate", "v1", "--message", "One")
    checkout.write("src/cosmicai/untracked.py")
    assert checkout.build().returncode == 0
    assert checkout.argument("COMMIT") == checkout.commit and len(checkout.commit) == 40
    checkout.calls.unlink()
    shutil.rmtree(checkout.kept)
    checkout.write("aws/handlers.py", "changed")
    assert checkout.build().returncode == 0
    assert checkout.argument("COMMIT") == f"{checkout.commit}-dirty"
    assert (checkout.kept / "project/aws/handlers.py").read_text() == "changed"


def test_a_file_that_was_removed_is_left_out(checkout: Checkout) -> None:
    (checkout.root / "src/cosmicai/a b é.py").unlink()
    done = checkout.build()
    assert (done.returncode, done.stdout) == (0, f"{DIGEST}\n")
    assert checkout.argument("COMMIT") == f"{checkout.commit}-dirty"
    assert not (checkout.kept / "project/src/cosmicai/a b é.py").exists()


@pytest.mark.parametrize(
    ("url", "source"),
    [
        (None, ""),
        ("/srv/cosmicai.git", ""),
        ("../cosmicai", ""),
        ("https://host/x.git", "https://host/x.git"),
        ("https://user:secret@host/x", "https://host/x"),
        ("https://token@host:8443/x@y", "https://host:8443/x@y"),
        ("https://user:s@cret@host/x", "https://host/x"),
        ("git@host:x.git", "git@host:x.git"),
    ],
)
def test_the_source_is_named_without_credentials(checkout: Checkout, url: str | None, source: str) -> None:
    if url:
        git(checkout.root, "remote", "add", "origin", url)
    assert checkout.build().returncode == 0
    assert checkout.argument("SOURCE") == source


def test_the_image_can_be_written_to_another_folder(checkout: Checkout) -> None:
    done = checkout.build("--out", "né w/deep")
    assert (done.returncode, done.stdout) == (0, f"{DIGEST}\n")
    assert checkout.left == ["here/né w/deep/cosmicai-cpu.oci.tar"]


ENDS = {
    "building": 'case $1 in build) echo "no space" >&2; exit 125 ;; esac',
    "pushing": 'case $1 in push) printf half >"${last#oci-archive:}"; echo "no space" >&2; exit 125 ;; esac',
}


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("text", ENDS.values(), ids=ENDS)
def test_a_failing_builder_keeps_an_existing_image(checkout: Checkout, text: str, before: bool) -> None:
    checkout.program("podman", f"{text}\n{BUILDER}")
    image = checkout.here / "cosmicai-cpu.oci.tar"
    if before:
        image.write_text("old")
    done = checkout.build()
    assert (done.returncode != 0, done.stdout) == (True, "")
    assert plain(done.stderr)[:3] == ["build.sh: fetching wheels", "build.sh: building with podman", "no space"]
    assert checkout.left == (["here/cosmicai-cpu.oci.tar"] if before else [])
    assert not before or image.read_text() == "old"


def test_a_failing_docker_leaves_no_files(checkout: Checkout) -> None:
    half = '[[ $* =~ dest=([^,]*) ]] && printf half >"${BASH_REMATCH[1]}" && exit 1'
    checkout.program("docker", f"{half}\n{DOCKER}")
    done = checkout.build()
    assert (done.returncode, checkout.left) == (1, [])
    assert DIGEST not in done.stdout


def test_an_image_that_cannot_be_pushed_is_removed_from_the_builder(checkout: Checkout) -> None:
    checkout.program("podman", f"{ENDS['pushing']}\n{BUILDER}")
    assert checkout.build().returncode != 0
    assert checkout.builder_calls[-1] == "podman rmi localhost/cosmicai:build-N"


def test_a_terminated_build_leaves_no_files(checkout: Checkout) -> None:
    checkout.program("podman", f'[ "$1" != build ] || kill -TERM "$PPID"\n{BUILDER}')
    assert checkout.build().returncode == -15
    assert checkout.left == []


APPTAINER = r"""
cp "$last" "$KEPT"
printf half >"${@: -2:1}"
echo "INFO: building"
printf " and whole" >>"${@: -2:1}"
"""
DEFINITION = """\
Bootstrap: {bootstrap}
From: {source}

%labels
  cosmicai.image-digest {digest}

%environment
  export COSMICAI_IMAGE_DIGEST={digest}

%runscript
  exec /opt/cosmicai/bin/entrypoint "$@"

%test
  exec cosmicai selftest
"""


def made_sif(system: FakeSystem, bootstrap: str, source: str, digest: str, *words: str) -> None:
    system.program("apptainer", APPTAINER)
    done = system.run("sif", *words)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{digest}\n", "INFO: building\n")
    assert system.kept.read_text() == DEFINITION.format(bootstrap=bootstrap, source=source, digest=digest)
    name = words[1] if len(words) > 1 else "cosmicai.sif"
    assert (system.here / name).read_text() == "half and whole"
    call = rf"apptainer build --notest {name}\.partial-N {system.folder}/tmp/tmp\.\w+\.def"
    assert len(system.called) == 1 and re.fullmatch(call, system.called[0])
    assert [path for path in system.left if not path.endswith(".oci.tar")] == [f"here/{name}"]


def test_a_sif_is_made_of_an_archive(system: FakeSystem) -> None:
    oci_archive(system.here / "a b.oci.tar")
    made_sif(system, "oci-archive", "a b.oci.tar", DIGEST, "a b.oci.tar", "é.sif")


def test_a_sif_is_made_of_an_image_in_a_registry_also_beside_an_archive(system: FakeSystem) -> None:
    oci_archive(system.here / "cosmicai-cuda.oci.tar")
    made_sif(system, "docker", f"host:5000/n/name@{OTHER}", OTHER, f"docker://host:5000/n/name@{OTHER}")


@pytest.mark.parametrize("names", [["cosmicai-cpu.oci.tar"], ["cosmicai-cuda.oci.tar", "cosmicai-cpu.oci.tar"]])
def test_a_sif_is_built_from_the_archive_here_preferably_the_one_for_gpus(system: FakeSystem, names: list[str]) -> None:
    for name in names:
        oci_archive(system.here / name)
    made_sif(system, "oci-archive", names[0], DIGEST)


NO_SIF = {
    "no archive": ([], "there is no cosmicai-*.oci.tar here; build one with containers/build.sh, or name an image"),
    "no such archive": (["a.oci.tar"], "a.oci.tar is not there; build it with containers/build.sh"),
    "a folder": (["."], ". is not there; build it with containers/build.sh"),
    "not a tar file": (["noise"], "noise is no OCI archive; build it anew with containers/build.sh"),
    "a cut archive": (["cut"], "cut is no OCI archive; build it anew with containers/build.sh"),
    "an empty index": (["empty"], "empty is no OCI archive; build it anew with containers/build.sh"),
    "a changed manifest": (["changed"], f"changed is damaged: it has not the manifest {DIGEST}; build it anew"),
    "no index": (["tar"], "tar is no OCI archive; build it anew with containers/build.sh"),
    **{
        image: ([image], f"{image} names no digest; end it with @sha256:..., as containers/build.sh printed it")
        for image in ("docker://host/name", "docker://host/name:tag", f"docker://{DIGEST}", "docker://host/name@sha256:")
    },
}  # fmt: skip


@pytest.mark.parametrize(("words", "why"), NO_SIF.values(), ids=NO_SIF)
def test_invalid_options_of_a_sif_are_one_sentence(system: FakeSystem, words: list[str], why: str) -> None:
    system.program("apptainer", APPTAINER)
    (system.here / "noise").write_text(f"index.json {DIGEST}")
    (system.here / "cut").write_bytes(system.archive.read_bytes()[:1100])
    oci_archive(system.here / "changed", manifest=MANIFEST + b" ")
    oci_archive(system.here / "empty", '{"schemaVersion": 2, "manifests": []}')
    with tarfile.open(system.here / "tar", "w") as archive:
        archive.add(system.archive, "layer.tar")
    assert refused(system.run("sif", *words), f"sif.sh: {why}")
    assert system.left == system.called == []


def test_without_apptainer_no_sif_is_built(system: FakeSystem) -> None:
    oci_archive(system.here / "a.oci.tar")
    done = system.run("sif", "a.oci.tar")
    assert refused(done, "sif.sh: there is no apptainer here; install it, or on a cluster load its module")
    assert system.left == ["here/a.oci.tar"]


@pytest.mark.parametrize("before", [False, True])
def test_a_failing_apptainer_keeps_an_existing_sif(system: FakeSystem, before: bool) -> None:
    system.program("apptainer", f'{APPTAINER}\necho "FATAL: no space" >&2; exit 255')
    sif = system.here / "cosmicai.sif"
    if before:
        sif.write_text("old")
    done = system.run("sif", f"docker://host/name@{OTHER}")
    why = "apptainer could not build it, see above; if space is short, point TMPDIR to a larger folder"
    assert refused(done, "INFO: building", "FATAL: no space", f"sif.sh: {why}")
    assert system.left == (["here/cosmicai.sif"] if before else [])
    assert not before or sif.read_text() == "old"


def test_without_mmdebstrap_no_base_is_built(system: FakeSystem) -> None:
    assert refused(system.run("base", "base.tar"), f"base.sh: {NO_MMDEBSTRAP}")
    assert list(system.here.iterdir()) == []


@pytest.mark.parametrize("before", [False, True])
def test_a_failing_mmdebstrap_keeps_an_existing_base(system: FakeSystem, before: bool) -> None:
    system.program("mmdebstrap", f'{MMDEBSTRAP}\necho "E: no mirror" >&2; exit 25')
    base = system.here / "base.tar"
    if before:
        base.write_text("old")
    done = system.run("base", "base.tar")
    assert (done.returncode, done.stdout, done.stderr) == (25, "", "E: no mirror\n")
    assert list(system.here.iterdir()) == ([base] if before else [])
    assert not before or base.read_text() == "old"


@pytest.mark.parametrize(
    ("words", "suite", "mirrors", "variables", "time"),
    [
        ([], "bookworm", "", {}, 0),
        (["trixie"], "trixie", "", {"SOURCE_DATE_EPOCH": TIME}, TIME),
        (["trixie", "http://a/b"], "trixie", " http://a/b", {}, 0),
    ],
)
def test_a_base_appears_only_when_complete(
    system: FakeSystem, words: list[str], suite: str, mirrors: str, variables: dict[str, object], time: int
) -> None:
    system.program("mmdebstrap", f'echo "at $SOURCE_DATE_EPOCH" >>"$CALLS"\n{MMDEBSTRAP}')
    done = system.run("base", "my base.tar", *words, **variables)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert {path.name: path.read_text() for path in system.here.iterdir()} == {"my base.tar": "half and whole"}
    call, at = system.called
    assert call.startswith("mmdebstrap --quiet --variant=minbase --include=ca-certificates --format=tar --dpkgopt=")
    assert call.endswith(f" {suite} my base.tar.partial-N{mirrors}") and at == f"at {time}"


class Image:
    """What an image has of containers/, at its place in a folder, and a Python that says what it is to do."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.opt, self.functions = folder, folder / "opt", folder / "functions"
        self.functions.mkdir()
        (self.opt / "bin").mkdir(parents=True)
        shutil.copy(PROJECT / "containers/entrypoint.sh", self.opt / "bin/entrypoint")
        executable(folder / "bin/python", 'echo "in $PWD: python $*"; exit 9')
        self.path = f"{folder / 'bin'}:{os.environ['PATH']}"

    def run(self, *words: str, **variables: object) -> subprocess.CompletedProcess[str]:
        return run_script([self.opt / "bin/entrypoint", *words], self.folder, **{"PATH": self.path} | variables)

    def variables(self, **given: object) -> dict[str, str]:
        done = self.run("env", "-0", **given)
        assert done.returncode == 0, done.stderr
        return dict(variable.split("=", 1) for variable in done.stdout.split("\0") if variable)


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(tmp_path)


def test_without_a_command_it_lists_the_commands(image: Image) -> None:
    executable(image.folder / "bin/cosmicai", 'echo "cosmicai $*"')
    done = image.run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "cosmicai --help\n", "")


def test_the_image_runs_its_command(image: Image) -> None:
    done = image.run("printf", "%s|", "a b", "", '"$x"', "é", "*")
    assert (done.returncode, done.stdout, done.stderr) == (0, 'a b||"$x"|é|*|', "")
    assert image.run("sh", "-c", "exit 7").returncode == 7
    assert image.run("no-such-program").returncode == 127
    done = image.run("python", "-m", "cosmicai")
    assert (done.returncode, done.stdout) == (9, f"in {image.folder}: python -m cosmicai\n")


@pytest.mark.parametrize(("given", "home"), [({"HOME": "/home/a"}, "/home/a"), ({"HOME": ""}, "/")])
def test_a_user_without_a_home_gets_the_root(image: Image, given: dict[str, str], home: str) -> None:
    """Programs such as mpirun end without the variable."""
    assert image.variables(**given)["HOME"] == home
    command = ["env", "--unset=HOME", str(image.opt / "bin/entrypoint"), "printenv", "HOME"]
    assert run_script([*command], image.folder).stdout == "/\n"


def test_the_image_runs_as_a_user_without_privileges() -> None:
    lines = (PROJECT / "containers/Containerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER 1000:1000"]
    # Only then: what is built before belongs to root.
    assert lines.index("USER 1000:1000") > max(n for n, line in enumerate(lines) if line.startswith(("RUN", "ADD")))


@pytest.mark.parametrize("under", [{}, {"AWS_LAMBDA_RUNTIME_API": "127.0.0.1:9001"}])
def test_the_command_replaces_the_process_of_the_entrypoint(image: Image, under: dict[str, str]) -> None:
    executable(image.folder / "bin/python", "echo $$")
    given = {"PATH": image.path, "COSMICAI_FUNCTIONS": str(image.functions), **under}
    command: list[str | Path] = [image.opt / "bin/entrypoint", "python"]
    with subprocess.Popen(command, env=given, stdout=subprocess.PIPE, text=True) as process:
        assert process.communicate()[0] == f"{process.pid}\n"


@pytest.mark.parametrize(
    ("words", "handler"),
    [
        ([], "handlers.infer"),
        (["handlers.plan"], "handlers.plan"),
    ],
)
def test_under_lambda_the_image_runs_a_function(image: Image, words: list[str], handler: str) -> None:
    lambdas = {"AWS_LAMBDA_RUNTIME_API": "127.0.0.1:9001", "LAMBDA_TASK_ROOT": "/var/task"}
    under = lambdas | {"COSMICAI_FUNCTIONS": image.functions}
    done = image.run(*words, **under)
    assert done.stderr == ""
    assert (done.returncode, done.stdout) == (9, f"in {image.functions}: python -m awslambdaric {handler}\n")


def test_the_environment_is_not_changed(image: Image) -> None:
    given = {"PATH": image.path, "HOME": "/", "OTHER": "1", "PWD": str(image.folder)}
    assert image.variables(**given) == given


def listed(folder: Path, **variables: object) -> str:
    done = run_script([sys.executable, "-B", PROJECT / "containers/sbom.py"], folder, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


INSTALLED = """
from importlib.metadata import distributions
for own in distributions():
    print(own.metadata["Name"], own.version)
"""


def test_the_bill_of_materials_has_every_package_once(tmp_path: Path) -> None:
    if not shutil.which("dpkg-query"):
        pytest.skip(NO_DPKG)
    text = listed(tmp_path, PYTHONHASHSEED=1)
    bill = json.loads(text)
    parts = bill.pop("components")
    assert bill == {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1}
    assert all(part["type"] == "library" and part["bom-ref"] == part["purl"] for part in parts)
    assert all(sorted(part) == ["bom-ref", "name", "purl", "type", "version"] for part in parts)
    assert max(Counter(part["bom-ref"] for part in parts).values()) == 1
    assert parts == sorted(parts, key=lambda part: (part["name"], part["version"], part["purl"]))
    found = {
        kind: sorted((part["name"], part["version"]) for part in parts if part["purl"].startswith(f"pkg:{kind}/"))
        for kind in ("pypi", "deb/debian")
    }
    assert sum(map(len, found.values())) == len(parts)
    installed = run_script([sys.executable, "-c", INSTALLED], tmp_path).stdout.splitlines()
    assert found["pypi"] == sorted({tuple(line.split()) for line in installed})
    assert {"torch", "numpy"} <= {name for name, _ in found["pypi"]}
    shown = run_script(["dpkg-query", "--show", "--showformat=${Package} ${Version} ${db:Status-Status}\n"], tmp_path)
    packages = [line.split() for line in shown.stdout.splitlines()]
    assert found["deb/debian"] == sorted((name, version) for name, version, state in packages if state == "installed")
    assert listed(tmp_path, PYTHONHASHSEED=2) == text


def test_packages_have_standard_package_urls(tmp_path: Path) -> None:
    shown = (
        "installed libstdc++6 12.2.0-14+deb12u1 amd64", "installed libc6 2.36 amd64", "installed libc6 2.36 i386",
        "config-files exim4 4.96 amd64", "installed tzdata 1:2024a~0 all",
    )  # fmt: skip
    (tmp_path / "shown").write_text("".join(f"{line}\n".replace(" ", "\t") for line in shown))
    executable(tmp_path / "bin/dpkg-query", f"cat '{tmp_path}/shown'")
    for name, version in {"Some_Name": "1.0", "other": "2!3+cpu"}.items():
        metadata = tmp_path / f"site/{name}-1.dist-info/METADATA"
        metadata.parent.mkdir(parents=True)
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    listing = listed(tmp_path, PATH=f"{tmp_path}/bin:{os.environ['PATH']}", PYTHONPATH=tmp_path / "site")
    parts = [(part["name"], part["version"], part["purl"]) for part in json.loads(listing)["components"]]
    assert [part for part in parts if part[2].startswith("pkg:deb/")] == [
        ("libc6", "2.36", "pkg:deb/debian/libc6@2.36?arch=amd64&distro=debian-12"),
        ("libc6", "2.36", "pkg:deb/debian/libc6@2.36?arch=i386&distro=debian-12"),
        ("libstdc++6", "12.2.0-14+deb12u1",
         "pkg:deb/debian/libstdc%2B%2B6@12.2.0-14%2Bdeb12u1?arch=amd64&distro=debian-12"),
        ("tzdata", "1:2024a~0", "pkg:deb/debian/tzdata@1%3A2024a~0?arch=all&distro=debian-12"),
    ]  # fmt: skip
    assert ("Some_Name", "1.0", "pkg:pypi/some-name@1.0") in parts
    assert ("other", "2!3+cpu", "pkg:pypi/other@2%213%2Bcpu") in parts
