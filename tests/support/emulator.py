"""AWS Lambda's runtime interface emulator, where it is installed."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

MACHINE = {"x86_64": "x86_64", "aarch64": "arm64"}.get(platform.machine())


EMULATOR = Path(sys.prefix, "rie/samcli/local/rapid", f"aws-lambda-rie-{MACHINE}")


NO_EMULATOR = f"AWS Lambda's emulator is not at {EMULATOR} (`make test` installs it)"
