"""Engines: implementations of the network that compute redshifts on a device.

OpenVINO reports each import to a web analytics service, from a forked process. Users of this package have not agreed to
that, and a fork while numpy's threads are running can deadlock. OpenVINO works without its telemetry package, so that
package is made impossible to import.
"""

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
