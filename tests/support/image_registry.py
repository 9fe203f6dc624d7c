"""A real image registry (Debian's docker-registry) on the loopback interface."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cosmicai.bench.lambda_emulator import find_free_ports, wait_for_listener

NO_REGISTRY = "docker-registry or skopeo is not installed"


def is_available() -> bool:
    """Return whether a registry can be started and filled on this machine."""
    return bool(shutil.which("docker-registry") and shutil.which("skopeo"))


@contextmanager
def serve_registry(folder: Path) -> Iterator[str]:
    """Run a registry that stores its content in the folder, and yield its HOST:PORT."""
    [port] = find_free_ports(1)
    config = {
        "version": 0.1, "log": {"level": "error", "accesslog": {"disabled": True}},
        "http": {"addr": f"127.0.0.1:{port}"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "images")}},
    }  # fmt: skip
    (folder / "config.yml").write_text(json.dumps(config))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", folder / "config.yml"], stdout=log, stderr=log)
        try:
            wait_for_listener(process, port, folder / "log")
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)


def fetch_manifest(host: str, name: str, digest: str) -> bytes:
    """Return the bytes of an image's manifest."""
    request = urllib.request.Request(
        f"http://{host}/v2/{name}/manifests/{digest}", headers={"Accept": "application/vnd.oci.image.manifest.v1+json"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return response.read()
