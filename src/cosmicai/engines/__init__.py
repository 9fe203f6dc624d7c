"""Engines: what computes redshifts.

OpenVINO reports each of its imports to a web analytics service, from a forked process. What is computed here is nobody
else's business, and a fork beside numpy's threads can hang both; where the package that does it cannot be imported,
OpenVINO goes on without.
"""

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
