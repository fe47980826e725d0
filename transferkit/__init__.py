"""transferkit: transfer learning for images.

Names are loaded on first use, so that `import transferkit` itself loads neither torch nor anything else that is heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Backbone": "transferkit.models.backbones.registry",
    "FeatureExtractor": "transferkit.features.sklearn",
    "ImageProbe": "transferkit.features.sklearn",
    "ImageData": "transferkit.data.batches.datamodule",
    "Phase": "transferkit.training.plan.phases",
    "PhaseSchedule": "transferkit.training.loop.phase_schedule",
    "SGDR": "transferkit.training.schedules.schedules",
    "Cosine": "transferkit.training.schedules.schedules",
    "TransferModule": "transferkit.models.module",
    "TransferkitError": "transferkit.core.errors",
    "advise": "transferkit.results.advise.advise",
    "check_gradients": "transferkit.training.checks.gradcheck",
    "extract_features": "transferkit.features.extract.extract",
    "find_lr": "transferkit.training.lr.find",
    "finetune": "transferkit.cli.job",
    "load": "transferkit.results.predict.predictor",
    "register_backbone": "transferkit.models.backbones.registry",
    "register_head": "transferkit.models.heads.registry",
    "similar": "transferkit.results.similar.similar",
    "solve_head": "transferkit.training.head.solve",
}

__all__ = [
    "SGDR",
    "Backbone",
    "Cosine",
    "FeatureExtractor",
    "ImageData",
    "ImageProbe",
    "Phase",
    "PhaseSchedule",
    "TransferModule",
    "TransferkitError",
    "advise",
    "check_gradients",
    "extract_features",
    "find_lr",
    "finetune",
    "load",
    "register_backbone",
    "register_head",
    "similar",
    "solve_head",
]

if TYPE_CHECKING:
    from transferkit.cli.job import finetune
    from transferkit.core.errors import TransferkitError
    from transferkit.data.batches.datamodule import ImageData
    from transferkit.features.extract.extract import extract_features
    from transferkit.features.sklearn import FeatureExtractor, ImageProbe
    from transferkit.models.backbones.registry import Backbone, register_backbone
    from transferkit.models.heads.registry import register_head
    from transferkit.models.module import TransferModule
    from transferkit.results.advise.advise import advise
    from transferkit.results.predict.predictor import load
    from transferkit.results.similar.similar import similar
    from transferkit.training.checks.gradcheck import check_gradients
    from transferkit.training.head.solve import solve_head
    from transferkit.training.loop.phase_schedule import PhaseSchedule
    from transferkit.training.lr.find import find_lr
    from transferkit.training.plan.phases import Phase
    from transferkit.training.schedules.schedules import SGDR, Cosine


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'transferkit' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
