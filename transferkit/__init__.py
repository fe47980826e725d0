"""transferkit: transfer learning for images.

Names are loaded on first use, so that `import transferkit` itself loads neither torch nor anything else that is heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Backbone": "transferkit.models.backbones",
    "FeatureExtractor": "transferkit.features.sklearn",
    "ImageProbe": "transferkit.features.sklearn",
    "ImageData": "transferkit.data.datamodule",
    "Phase": "transferkit.training.phases",
    "PhaseSchedule": "transferkit.training.callbacks",
    "SGDR": "transferkit.training.schedules",
    "Constant": "transferkit.training.schedules",
    "Cosine": "transferkit.training.schedules",
    "OneCycle": "transferkit.training.schedules",
    "TransferModule": "transferkit.models.module",
    "TransferkitError": "transferkit.errors",
    "check_gradients": "transferkit.training.gradcheck",
    "extract_features": "transferkit.features.extract",
    "find_lr": "transferkit.training.lr_finder",
    "finetune": "transferkit.results.job",
    "load": "transferkit.results.predict",
    "register_backbone": "transferkit.models.backbones",
    "register_head": "transferkit.models.heads",
    "solve_head": "transferkit.training.lpft",
}

__all__ = [
    "SGDR",
    "Backbone",
    "Constant",
    "Cosine",
    "FeatureExtractor",
    "ImageData",
    "ImageProbe",
    "OneCycle",
    "Phase",
    "PhaseSchedule",
    "TransferModule",
    "TransferkitError",
    "check_gradients",
    "extract_features",
    "find_lr",
    "finetune",
    "load",
    "register_backbone",
    "register_head",
    "solve_head",
]

if TYPE_CHECKING:
    from transferkit.data.datamodule import ImageData
    from transferkit.errors import TransferkitError
    from transferkit.features.extract import extract_features
    from transferkit.features.sklearn import FeatureExtractor, ImageProbe
    from transferkit.models.backbones import Backbone, register_backbone
    from transferkit.models.heads import register_head
    from transferkit.models.module import TransferModule
    from transferkit.results.job import finetune
    from transferkit.results.predict import load
    from transferkit.training.callbacks import PhaseSchedule
    from transferkit.training.gradcheck import check_gradients
    from transferkit.training.lpft import solve_head
    from transferkit.training.lr_finder import find_lr
    from transferkit.training.phases import Phase
    from transferkit.training.schedules import SGDR, Constant, Cosine, OneCycle


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'transferkit' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
