"""Lists the Debian and Python packages of the system that runs it, as CycloneDX 1.5 JSON on standard output."""

import json
import subprocess
from importlib.metadata import distributions
from urllib.parse import quote

SHOWN = "${db:Status-Status}\t${Package}\t${Version}\t${Architecture}\n"


def debian() -> list[tuple[str, str, str]]:
    """Name, version and package URL of every installed Debian package."""
    listed = subprocess.run(
        ["dpkg-query", "--show", f"--showformat={SHOWN}"], capture_output=True, text=True, check=True
    )
    found = []
    for line in listed.stdout.splitlines():
        status, name, version, architecture = line.split("\t")
        if status != "installed":
            continue
        url = f"pkg:deb/debian/{quote(name)}@{quote(version, safe='')}?arch={architecture}&distro=debian-12"
        found.append((name, version, url))
    return found


def python() -> list[tuple[str, str, str]]:
    """Name, version and package URL of every installed Python package."""
    pairs = {(own.metadata["Name"], own.version) for own in distributions()}
    return [(name, version, f"pkg:pypi/{name.lower().replace('_', '-')}@{quote(version, safe='')}")
            for name, version in pairs]  # fmt: skip


if __name__ == "__main__":
    components = [
        {"type": "library", "bom-ref": url, "name": name, "version": version, "purl": url}
        for name, version, url in sorted(debian() + python())
    ]
    print(
        json.dumps({"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "components": components}, indent=1)
    )
