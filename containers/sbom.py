"""Print the Debian and Python packages of this system as a software bill of materials, CycloneDX 1.5 JSON."""

import json
import subprocess
from importlib.metadata import distributions
from urllib.parse import quote

FORMAT = "${db:Status-Status}\t${Package}\t${Version}\t${Architecture}\n"


def list_debian_packages() -> list[tuple[str, str, str]]:
    """Return name, version and package URL of every installed Debian package."""
    listed = subprocess.run(
        ["dpkg-query", "--show", f"--showformat={FORMAT}"], capture_output=True, text=True, check=True
    )
    packages = []
    for line in listed.stdout.splitlines():
        status, name, version, architecture = line.split("\t")
        if status != "installed":
            continue
        url = f"pkg:deb/debian/{quote(name)}@{quote(version, safe='')}?arch={architecture}&distro=debian-12"
        packages.append((name, version, url))
    return packages


def list_python_packages() -> list[tuple[str, str, str]]:
    """Return name, version and package URL of every installed Python package."""
    pairs = {(own.metadata["Name"], own.version) for own in distributions()}
    return [(name, version, f"pkg:pypi/{name.lower().replace('_', '-')}@{quote(version, safe='')}")
            for name, version in pairs]  # fmt: skip


if __name__ == "__main__":
    components = [
        {"type": "library", "bom-ref": url, "name": name, "version": version, "purl": url}
        for name, version, url in sorted(list_debian_packages() + list_python_packages())
    ]
    print(
        json.dumps({"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "components": components}, indent=1)
    )
