"""Python runs this file at its start where this folder is on PYTHONPATH."""

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location("torchvision_operators", Path(__file__).with_name("__init__.py"))
assert _spec is not None and _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
_module.prepare_torchvision()
