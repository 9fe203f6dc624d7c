"""Cosmic AI: photometric redshifts for millions of galaxy cutouts, on whatever machines you have.

What is useful from Python is imported when it is used, so that `import cosmicai` needs neither torch nor OpenVINO nor
numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import VERSION

if TYPE_CHECKING:
    from .errors import InputError as InputError
    from .library.predictor import Prediction as Prediction
    from .library.predictor import Predictor as Predictor
    from .library.predictor import predict as predict
    from .library.runs import Run as Run
    from .library.runs import infer as infer
    from .library.runs import open_run as open_run
    from .library.runs import read_catalogue as read_catalogue
    from .surveys.survey import open_survey as open_survey

__version__ = VERSION
__all__ = [
    "InputError", "Prediction", "Predictor", "Run", "infer", "open_run", "open_survey", "predict", "read_catalogue",
]  # fmt: skip

_MODULES = {
    "InputError": "errors",
    "Prediction": "library.predictor", "Predictor": "library.predictor", "predict": "library.predictor",
    "Run": "library.runs", "infer": "library.runs", "open_run": "library.runs", "read_catalogue": "library.runs",
    "open_survey": "surveys.survey",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
