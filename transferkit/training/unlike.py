"""The distance from the training pictures: fitted on features of the final weights, held against held-out pictures."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import TransferkitError, TransferkitWarning
from transferkit.core.text import first_line
from transferkit.data.batches.dataset import Picture
from transferkit.features.engine.compute import FrozenBackbone
from transferkit.features.engine.taps import find_taps
from transferkit.features.extract.extract import make_views
from transferkit.features.extract.extraction import extract_pictures
from transferkit.features.store.store import FeatureStore
from transferkit.models.module import TransferModule
from transferkit.models.tuning.layout import layout_of
from transferkit.models.unlike.distance import LEAST
from transferkit.models.unlike.statistics import choose_pictures, fit_distance, groups_of
from transferkit.runs.measure import Outputs
from transferkit.training.plan.phases import HEAD
from transferkit.training.setup import Options, Training

__all__ = ["fit_on_features", "fit_on_training", "hold_out"]


def fit_on_training(training: Training[Options]) -> float:
    """Give a model the distance from its training pictures, by one pass over the evaluation views of at most 10,000.

    Where the backbone is as it was before training, its features are those of the store. Others are not stored.
    A model is worth having without: what goes wrong here is a warning.

    Args:
        training: Its module has the final weights.

    Returns:
        Seconds.

    Warns:
        TransferkitWarning: There is no distance, and why.
    """
    started = time.perf_counter()
    module, data = training.module.cpu(), training.data
    if not _enough(data.index.split("val")) or module.feed.on_pixels:  # no vector of a picture
        return 0.0
    groups = groups_of(data.targets("train").numpy(), classes=module.task.output.names_one)
    chosen = choose_pictures(groups, seed=training.config.seed)
    records = data.index.split("train")
    pictures = [Picture(records[at].path, records[at].sha256) for at in chosen.tolist()]
    layout = layout_of(module)
    reusable = not training.config.recalibrate_bn and all(
        set(phase.trained(layout)) <= {HEAD} for phase in training.phases if phase.epochs
    )
    compute = training.compute if reusable else replace(training.compute, precision="32")
    taps = find_taps(module.backbone)
    try:
        with tempfile.TemporaryDirectory(prefix="transferkit-") as folder:
            extraction = extract_pictures(
                pictures, FrozenBackbone(module.backbone), taps, make_views(module.data_config, 0, "none", 0),
                FeatureStore(training.config.store if reusable else folder), compute, pixels=data.pixels,
            )  # fmt: skip
        good = np.array([at not in extraction.failures for at in range(len(pictures))])
        fit_on_features(module, extraction.rows[taps[0]][0][good], groups[chosen][good])
    except (TransferkitError, OSError, MemoryError) as error:
        warnings.warn(
            f"the model cannot say which pictures are unlike its training pictures: {first_line(error)}",
            TransferkitWarning,
            stacklevel=2,
        )
    return time.perf_counter() - started


def fit_on_features(module: TransferModule, features: npt.NDArray[np.float32], groups: npt.NDArray[np.int64]) -> None:
    """Give a model the distance from training pictures whose features ``(N, D)`` are at hand; see `fit_distance`."""
    chosen = choose_pictures(groups)
    module.unlike = fit_distance(features[chosen], groups[chosen])


def hold_out(module: TransferModule, outputs: Mapping[str, Outputs], seconds: float) -> dict[str, Any]:
    """Say by held-out pictures what a large distance is, and return what `metrics.json` holds of it.

    Without enough of them, or of training pictures, the model keeps no distance.

    Args:
        module: With the distance, where there is one.
        outputs: By split; those of ``"val"`` are used.
        seconds: That the fit took.
    """
    val = outputs.get("val")
    if module.unlike is None or val is None or not _enough(val.paths):
        module.unlike = None
        return {}
    assert val.distances is not None and val.features is not None
    facts = module.unlike.hold_out(val.distances, val.features).facts
    return {"unlike_training": {**{name: value for name, value in facts.items() if name != "quantiles"},
                                "time_s": seconds}}  # fmt: skip


def _enough(held_out: Any) -> bool:
    return len(held_out) >= LEAST
