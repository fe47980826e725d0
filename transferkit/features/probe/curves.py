"""What a probe is worth against the number of training rows, and against the depth of the layer of its features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transferkit.models.figures.bootstrap import bootstrap_intervals
from transferkit.models.heads.solver import Array, LabelledRows, ProbeOptions, Progress, Solver

__all__ = ["depth_curve", "learning_curve", "nested_subsets"]

SHARES = (0.1, 0.2, 0.4, 0.8, 1.0)
DRAWS = 2000
"""Of the bootstrap."""


def learning_curve(
    train: LabelledRows,
    held: LabelledRows,
    solver: Solver,
    options: ProbeOptions | None = None,
    *,
    shares: Sequence[float] = SHARES,
    repeats: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Measure how the figure of a solver grows with the training rows.

    Each repeat draws its own nested subsets, stratified by class: a smaller share lies within every larger one. All
    rows are the same in every repeat and are fitted once.

    Args:
        train: N rows to train on; a group is drawn whole.
        held: M rows to measure on; nothing is chosen on them.
        solver: Fits them, and says which figure is measured: of classification ``acc``, the accuracy.
        options: Of the probe.
        shares: Of the rows (of the groups, where there are any), in (0, 1].
        repeats: Draws per share, at least 1.
        seed: Of the draws and the fits.
        progress: Called with the fits done and all fits, after each.

    Returns:
        Per share, ascending, as JSON values: ``share``, ``rows`` (mean over the repeats), ``acc`` (mean), ``acc_min``,
        ``acc_max``, and ``repeats``, a list of ``{"rows": ..., "acc": ..., "choice": ...}``.

    Raises:
        ConfigError: The rows or the options are wrong, or a share holds fewer than two classes.
    """
    shares, key = sorted(set(shares)), solver.figure
    total = sum(1 if share == 1 else repeats for share in shares)
    runs: dict[float, list[dict[str, Any]]] = {share: [] for share in shares}
    done = 0
    for repeat in range(repeats):
        for share, index in zip(shares, nested_subsets(train, shares, seed=seed + repeat), strict=True):
            if share == 1 and repeat:
                continue
            probe = solver.fit(train.take(index), options, seed=seed)
            value = float(probe.scores(held.X, held.y).mean())
            runs[share].append({"rows": len(index), key: value, "choice": dict(probe.choice)})
            done += 1
            if progress is not None:
                progress(done, total)
    return [
        {
            "share": share,
            "rows": float(np.mean([run["rows"] for run in own])),
            key: float(np.mean([run[key] for run in own])),
            f"{key}_min": min(run[key] for run in own),
            f"{key}_max": max(run[key] for run in own),
            "repeats": own,
        }
        for share, own in runs.items()
    ]


def nested_subsets(rows: LabelledRows, shares: Sequence[float], *, seed: int) -> list[Array]:
    """Draw one subset per share, each within every larger one, stratified where targets are classes.

    A group counts for the class most of its rows have. Of every class's groups the rounded share is taken, at least
    one.

    Args:
        rows: To draw from.
        shares: In (0, 1].
        seed: Another seed, another draw.

    Returns:
        Per share the rows, ascending.
    """
    units = rows.units()
    strata = rows.y if rows.y.ndim == 1 else np.zeros(len(rows), dtype=np.int64)  # numbers and lists have none
    votes = np.zeros((units.max() + 1, int(strata.max()) + 1), dtype=np.int64)
    np.add.at(votes, (units, strata), 1)
    label = votes.argmax(axis=1)
    order = np.random.default_rng(seed).permutation(len(label))
    place, size = np.zeros(len(label), dtype=np.int64), np.bincount(label)
    for number in np.unique(label):
        own = order[label[order] == number]
        place[own] = np.arange(len(own))
    # half a unit rounds up, so that a larger share never gets fewer
    return [np.flatnonzero((place < np.maximum(1, np.floor(share * size + 0.5))[label])[units]) for share in shares]


def depth_curve(
    train: Mapping[str, LabelledRows],
    held: Mapping[str, LabelledRows],
    solver: Solver,
    options: ProbeOptions | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Fit a probe on every layer's features.

    The intervals are percentile bootstraps over the rows (over their groups, where there are any), with the same draws
    for every layer: they say how far the accuracy would move with other pictures, not with other training rows. Without
    a single error they have no width, which is no certainty.

    Args:
        train: By layer, in the order of depth, the same N rows with its features.
        held: By the same layers, the M rows to measure on.
        solver: Fits them, and says which figure is measured: of classification ``acc``, the accuracy.
        options: Of the probe.
        seed: Of the draws and the fits.
        progress: Called with the layers done and all layers, after each.

    Returns:
        Per layer, in order, as JSON values: ``layer``, ``width``, ``acc``, ``acc_low`` and ``acc_high`` (95 %), and
        ``choice``, what the probe chose.

    Raises:
        ConfigError: The rows or the options are wrong.
    """
    scores, choices, key = [], [], solver.figure
    for layer, rows in train.items():
        probe = solver.fit(rows, options, seed=seed)
        scores.append(probe.scores(held[layer].X, held[layer].y))
        choices.append(dict(probe.choice))
        if progress is not None:
            progress(len(scores), len(train))
    units = next(iter(held.values())).units()
    size, right = np.bincount(units), np.stack([np.bincount(units, weights=row) for row in scores])
    intervals = bootstrap_intervals(lambda drawn: right @ drawn / (size @ drawn), len(size), resamples=DRAWS, seed=seed)
    return [
        {
            "layer": layer,
            "width": int(rows.X.shape[1]),
            key: float(own.mean()),
            f"{key}_low": low,
            f"{key}_high": high,
            "choice": choice,
        }
        for (layer, rows), own, (low, high), choice in zip(train.items(), scores, intervals, choices, strict=True)
    ]
