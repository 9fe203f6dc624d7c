"""The image's way from an OCI archive (containers/build.sh) into the stack's repository, by its digest."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ...errors import InputError, explained
from .clients import Account, explained_aws

ARCHIVE = "cosmicai-cpu.oci.tar"
ARCHITECTURES = {"amd64": "x86_64", "arm64": "arm64"}  # an image's word, and Lambda's
STDERR = 2  # skopeo shows its progress on standard output, which is ours


@dataclass(frozen=True)
class Archive:
    """An image in a file: the digest of its manifest (`sha256:...`), what Lambda calls its architecture, and the
    variant and commit that its labels name."""

    path: str
    digest: str
    architecture: str
    variant: str | None
    commit: str | None

    @property
    def tag(self) -> str:
        """A name for people. A repository takes each but once, so that the same commit built anew has another."""
        commit = re.sub(r"[^\w.-]", "-", self.commit or "image", flags=re.ASCII)
        return f"{commit[:12]}{'-dirty' * commit.endswith('-dirty')}-{self.digest[7:19]}"


def read_archive(path: str) -> Archive:
    """What an OCI archive says of itself. Raises InputError if it is not one whole image that Lambda could run."""
    with explained(path, "read"):
        try:
            with tarfile.open(path, "r:") as tar:
                sizes = {member.name: member.size for member in tar}
                [entry] = json.loads(tar.extractfile("index.json").read())["manifests"]  # type: ignore[union-attr]
                manifest = json.loads(_blob(tar, entry["digest"]))
                config = json.loads(_blob(tar, manifest["config"]["digest"]))
                whole = all(sizes[_member(layer["digest"])] == layer["size"] for layer in manifest["layers"])
            labels, machine = config.get("config", {}).get("Labels") or {}, str(config["architecture"])
        except (tarfile.TarError, ValueError, KeyError, TypeError, AttributeError):
            whole = False
    if not whole:
        raise InputError(f"{path} is not one whole image in an OCI archive; make it anew with `make image`")
    if machine not in ARCHITECTURES:
        raise InputError(f"{path} is an image for {machine}; Lambda runs images for {' and '.join(ARCHITECTURES)}")
    commit, variant = (labels.get(name) for name in ("org.opencontainers.image.revision", "cosmicai.variant"))
    return Archive(path, entry["digest"], ARCHITECTURES[machine], variant, commit)


def has_image(account: Account, repository: str, digest: str) -> bool:
    """Whether the repository of this address holds an image. Raises InputError if ECR cannot be asked."""
    ecr, name = account.client("ecr"), repository.partition("/")[2]
    with explained_aws(f"look into the repository {name}"):
        try:
            ecr.describe_images(repositoryName=name, imageIds=[{"imageDigest": digest}])
        except ecr.exceptions.ImageNotFoundException:
            return False
    return True


def require_skopeo() -> None:
    """Raises InputError if skopeo is not installed."""
    if not shutil.which("skopeo"):
        raise InputError("skopeo is not installed, which pushes the image; `sudo apt-get install skopeo` brings it")


def push(account: Account, archive: Archive, repository: str) -> None:
    """Copies an image into the repository of this address as it is, so that it has its digest there too.

    Raises InputError if skopeo is not installed or fails, or ECR gives no password for it.
    """
    require_skopeo()
    host = repository.partition("/")[0]
    checks = "false" if re.match(r"(127\.|localhost)", host) else "true"
    with explained_aws("sign in to the image repository"):
        [given] = account.client("ecr").get_authorization_token()["authorizationData"]
    user, _, password = base64.b64decode(given["authorizationToken"]).decode().partition(":")
    with TemporaryDirectory(prefix="cosmicai-push-") as folder:
        sign = ["--authfile", str(Path(folder, "auth.json"))]
        # The password is on no command line, which all users of a machine may read.
        _skopeo("login", *sign, f"--tls-verify={checks}", "--username", user, "--password-stdin", host, told=password)
        copied = ("--preserve-digests", f"--dest-tls-verify={checks}")
        _skopeo("copy", *sign, *copied, f"oci-archive:{archive.path}", f"docker://{repository}:{archive.tag}")


def _skopeo(verb: str, *arguments: str, told: str = "") -> None:
    done = subprocess.run(
        ["skopeo", verb, *arguments], input=told, stdout=STDERR, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        reason = re.sub(r'.*\bmsg="(.*)"$', r"\1", last)
        raise InputError(f"skopeo {verb} failed: {reason}; check the network and your rights to the repository")


def _member(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _blob(tar: tarfile.TarFile, digest: str) -> bytes:
    """A part of the image, which is what its name tells. Raises ValueError if it is not."""
    data = tar.extractfile(_member(digest)).read()  # type: ignore[union-attr]
    if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
        raise ValueError(digest)
    return data
