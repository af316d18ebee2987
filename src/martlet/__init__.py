"""Martlet runs language models that are bigger than the machine.

The names below are loaded when they are first used: importing this package loads neither torch nor
numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from martlet import errors as errors

if TYPE_CHECKING:
    from martlet.api.adapting import AdaptationReport as AdaptationReport
    from martlet.api.adapting import adapt as adapt
    from martlet.api.adapting_options import AdaptationOptions as AdaptationOptions
    from martlet.api.compressing import CompressionReport as CompressionReport
    from martlet.api.compressing import quantize as quantize
    from martlet.api.loading import load as load
    from martlet.api.loading import plan as plan
    from martlet.api.model import Model as Model
    from martlet.conversion.convert import convert as convert
    from martlet.engine.fill import Blank as Blank
    from martlet.engine.fill import Fill as Fill
    from martlet.errors import CapacityError as CapacityError
    from martlet.errors import ContextLengthError as ContextLengthError
    from martlet.errors import DeviceError as DeviceError
    from martlet.errors import DiskFullError as DiskFullError
    from martlet.errors import DownloadError as DownloadError
    from martlet.errors import KernelCompileError as KernelCompileError
    from martlet.errors import MartletError as MartletError
    from martlet.errors import ModelFileError as ModelFileError
    from martlet.errors import ModelNotFoundError as ModelNotFoundError
    from martlet.errors import OverloadedError as OverloadedError
    from martlet.errors import RepositoryChangedError as RepositoryChangedError
    from martlet.errors import ServerUnreachableError as ServerUnreachableError
    from martlet.errors import UnavailableError as UnavailableError
    from martlet.errors import UsageError as UsageError
    from martlet.errors import VocabularyError as VocabularyError
    from martlet.hub.catalogue import list_models as list_models
    from martlet.memory.plan import Plan as Plan

__version__ = "0.1.0"

__all__ = [
    "AdaptationOptions",
    "AdaptationReport",
    "Blank",
    "CapacityError",
    "CompressionReport",
    "ContextLengthError",
    "DeviceError",
    "DiskFullError",
    "DownloadError",
    "Fill",
    "KernelCompileError",
    "MartletError",
    "Model",
    "ModelFileError",
    "ModelNotFoundError",
    "OverloadedError",
    "Plan",
    "RepositoryChangedError",
    "ServerUnreachableError",
    "UnavailableError",
    "UsageError",
    "VocabularyError",
    "__version__",
    "adapt",
    "convert",
    "errors",
    "list_models",
    "load",
    "plan",
    "quantize",
]

_MODULES = {
    "AdaptationOptions": "martlet.api.adapting_options",
    "AdaptationReport": "martlet.api.adapting",
    "Blank": "martlet.engine.fill",
    "CompressionReport": "martlet.api.compressing",
    "Fill": "martlet.engine.fill",
    "Model": "martlet.api.model",
    "Plan": "martlet.memory.plan",
    "adapt": "martlet.api.adapting",
    "convert": "martlet.conversion.convert",
    "list_models": "martlet.hub.catalogue",
    "load": "martlet.api.loading",
    "plan": "martlet.api.loading",
    "quantize": "martlet.api.compressing",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Whatever has no room of its own above is an error.
    value: object = getattr(importlib.import_module(_MODULES.get(name, "martlet.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
