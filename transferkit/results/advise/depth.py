"""The probe at every depth of the best candidate: whether earlier features suit the pictures better than the last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from transferkit.features.engine.compute import Compute
from transferkit.features.engine.taps import ALL, find_taps
from transferkit.results.advise.candidates import Contender
from transferkit.results.advise.pictures import TrainingPictures
from transferkit.results.advise.quadrants import DepthRow
from transferkit.results.advise.scoring import Scored, behind, score_features

__all__ = ["PICTURES", "probe_depths"]

PICTURES: Final = 1_000
"""Training pictures that depth is looked at on, about: every layer is extracted and fitted."""

Progress = Callable[[int, int], None]


def probe_depths(
    pictures: TrainingPictures,
    contender: Contender,
    compute: Compute,
    *,
    extracting: Progress | None = None,
    fitting: Progress | None = None,
) -> list[DepthRow]:
    """Cross-validate a probe on the features of every stage, on the same pictures and folds.

    Args:
        pictures: Of the data set; about `PICTURES` of those that candidates were compared on count.
        contender: The network.
        compute: What it runs on.
        extracting: Called with pictures computed and pictures to compute.
        fitting: Called with layers done and all layers.

    Returns:
        A row for each layer from input to output; the last one's lead is ``None``.

    Raises:
        TransferkitError: As `TrainingPictures.features` says.
    """
    rung, taps = pictures.part(min(PICTURES, len(pictures.rungs[-1]))), find_taps(contender.frozen.backbone, ALL)
    layers = pictures.features(contender, taps, rung.places, compute, extracting)
    y, units = pictures.y[rung.places], pictures.units[rung.places]
    scored: list[Scored] = []
    for features in layers:
        scored.append(
            score_features(features, y, units, rung.folds, pictures.task, pictures.spec, seed=pictures.config.seed)
        )
        if fitting is not None:
            fitting(len(scored), len(taps))
    last = scored[-1]
    return [
        DepthRow(
            tap.layer, features.shape[1], one.figure.value, one.figure.ci,
            None if one is last else behind(one, last, pictures.task, seed=pictures.config.seed),
        )
        for tap, features, one in zip(taps, layers, scored, strict=True)
    ]  # fmt: skip
