"""Push the image of an OCI archive (containers/build.sh) to the repository of the stack, by its digest."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from msgspec import field

from ...errors import InputError, describe_os_errors
from ...records import decode_json
from ...storage.local import open_regular
from .clients import Account, describe_aws_errors

ARCHIVE = "cosmicai-cpu.oci.tar"
OCI_ARCHITECTURES = {"amd64": "x86_64", "arm64": "arm64"}  # OCI's names, and Lambda's
REMEDY = "build it again with `make image`"
STDERR = 2  # where the progress that skopeo prints on standard output goes


@dataclass(frozen=True)
class ImageArchive:
    """An image in a file: the digest of its manifest (`sha256:...`), Lambda's name of its architecture, and the variant
    and commit of its labels."""

    path: str
    digest: str
    architecture: str
    variant: str | None
    commit: str | None

    @property
    def tag(self) -> str:
        """A readable tag. Tags are immutable in the repository, so that each build of a commit needs its own."""
        commit = re.sub(r"[^\w.-]", "-", self.commit or "image", flags=re.ASCII)
        return f"{commit[:12]}{'-dirty' * commit.endswith('-dirty')}-{self.digest[7:19]}"


class _Descriptor(msgspec.Struct, frozen=True):
    digest: str
    size: int


class _Index(msgspec.Struct, frozen=True):
    manifests: list[_Descriptor]


class _Manifest(msgspec.Struct, frozen=True):
    config: _Descriptor
    layers: list[_Descriptor]


class _RunConfig(msgspec.Struct, frozen=True):
    labels: dict[str, str] | None = field(name="Labels", default=None)


class _Config(msgspec.Struct, frozen=True):
    architecture: str
    config: _RunConfig = _RunConfig()


def read_archive(path: str) -> ImageArchive:
    """Read the metadata of an OCI archive. Raises InputError if it is not one complete image that Lambda can run."""
    with describe_os_errors(path, "read"), os.fdopen(open_regular(path), "rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                sizes = {member.name: member.size for member in tar}
                [entry] = decode_json(_read(tar, "index.json"), _Index, where=path, remedy=REMEDY).manifests
                manifest = decode_json(_read_blob(tar, entry.digest), _Manifest, where=path, remedy=REMEDY)
                config = decode_json(_read_blob(tar, manifest.config.digest), _Config, where=path, remedy=REMEDY)
                is_complete = all(sizes[_member(layer.digest)] == layer.size for layer in manifest.layers)
        except (tarfile.TarError, ValueError, KeyError, InputError):
            is_complete = False
    if not is_complete:
        raise InputError(f"{path} is not one complete image in an OCI archive; {REMEDY}")
    if config.architecture not in OCI_ARCHITECTURES:
        raise InputError(
            f"{path} is an image for {config.architecture}; Lambda runs images for {' and '.join(OCI_ARCHITECTURES)}"
        )
    labels = config.config.labels or {}
    commit, variant = (labels.get(name) for name in ("org.opencontainers.image.revision", "cosmicai.variant"))
    return ImageArchive(path, entry.digest, OCI_ARCHITECTURES[config.architecture], variant, commit)


def has_image(account: Account, repository: str, digest: str) -> bool:
    """Return whether the repository at this address holds an image. Raises InputError if ECR refuses to say."""
    ecr, name = account.client("ecr"), repository.partition("/")[2]
    with describe_aws_errors(f"list the images of the repository {name}"):
        try:
            ecr.describe_images(repositoryName=name, imageIds=[{"imageDigest": digest}])
        except ecr.exceptions.ImageNotFoundException:
            return False
    return True


def require_skopeo() -> None:
    """Raise InputError if skopeo, which pushes the image, is not installed."""
    if not shutil.which("skopeo"):
        raise InputError(
            "skopeo, which pushes the image, is not installed; install it with `sudo apt-get install skopeo`"
        )


def push_image(account: Account, archive: ImageArchive, repository: str) -> None:
    """Copy an image unchanged, and thus with the same digest, into the repository at this address.

    Raises InputError if skopeo is not installed or fails, or if ECR does not provide a password.
    """
    require_skopeo()
    host = repository.partition("/")[0]
    verify_tls = "false" if re.match(r"(127\.|localhost)", host) else "true"
    with describe_aws_errors("sign in to the image repository"):
        [authorization] = account.client("ecr").get_authorization_token()["authorizationData"]
    user, _, password = base64.b64decode(authorization["authorizationToken"]).decode().partition(":")
    with TemporaryDirectory(prefix="cosmicai-push-") as folder:
        credentials = ["--authfile", str(Path(folder, "auth.json"))]
        # Not on the command line, which all users of the machine can read.
        login = (f"--tls-verify={verify_tls}", "--username", user, "--password-stdin", host)
        _run_skopeo("login", *credentials, *login, stdin=password)
        copy = ("--preserve-digests", f"--dest-tls-verify={verify_tls}")
        source, target = f"oci-archive:{archive.path}", f"docker://{repository}:{archive.tag}"
        _run_skopeo("copy", *credentials, *copy, source, target)


def _run_skopeo(command: str, *arguments: str, stdin: str = "") -> None:
    done = subprocess.run(
        ["skopeo", command, *arguments], input=stdin, stdout=STDERR, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        reason = re.sub(r'.*\bmsg="(.*)"$', r"\1", last)
        raise InputError(f"skopeo {command} failed: {reason}; check the network and your rights to the repository")


def _member(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _read(tar: tarfile.TarFile, member: str) -> bytes:
    """Return a file of the archive. Raises KeyError if it does not exist."""
    if (file := tar.extractfile(member)) is None:
        raise KeyError(member)
    return file.read()


def _read_blob(tar: tarfile.TarFile, digest: str) -> bytes:
    """Return a part of the image. Raises ValueError if its content does not have this digest."""
    data = _read(tar, _member(digest))
    if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
        raise ValueError(digest)
    return data
