"""Two models on the same pictures: how much better one is, and whether that can be chance.

The comparison is paired: a picture that is hard for both says nothing about the difference, and does not widen its
interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import ConfigError
from transferkit.models.figures.bootstrap import RESAMPLES, bootstrap_intervals, known_value
from transferkit.models.figures.figure import Figure

__all__ = ["Outcomes", "compare", "compare_figures", "figure_differences", "figures_compared", "mcnemar", "verdict"]

LEVEL = 0.05
"""p-values below it are no chance."""


@dataclass(frozen=True)
class Outcomes:
    """The outcome of a model on N pictures.

    Attributes:
        right: ``(N,) bool``, whether the predicted class is the true one.
        nll: ``(N,) float``, negative log-likelihood of the true class, calibrated.
    """

    right: npt.NDArray[np.bool_]
    nll: npt.NDArray[np.float64]

    def __getitem__(self, rows: npt.NDArray[Any]) -> Outcomes:
        """Return those of some of the pictures."""
        return Outcomes(self.right[rows], self.nll[rows])


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value of McNemar's test.

    If both models were equally good, each picture that only one of them has right would be a coin toss. Of the tests
    that need a single training run Dietterich (1998) recommends this one.

    Args:
        only_first: Pictures that the first model alone has right.
        only_second: Pictures that the second model alone has right.
    """
    discordant = only_first + only_second
    from scipy.stats import binomtest  # a third of a second, which whoever compares nothing need not wait

    return float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0


def compare(
    first: Outcomes,
    second: Outcomes,
    targets: npt.NDArray[np.int64],
    class_names: Sequence[str],
    *,
    names: tuple[str, str] = ("the first", "the second"),
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Compare two models on the same pictures. Differences are first minus second.

    Args:
        first: The model in question.
        second: The one it is held against.
        targets: ``(N,) in [0, C)``, true classes.
        class_names: C names, in index order.
        names: What the models are called in the verdict.
        seed: Of the bootstrap.
        resamples: Bootstrap resamples of the pictures, the same for both models; the 95 % intervals of the differences
            are their percentiles.

    Returns:
        ``n``; ``acc`` and ``loss``, each with ``first, second, difference, ci``; ``table`` with ``both_right,
        only_first, only_second, both_wrong``; ``mcnemar_p``; ``per_class`` with ``n, first, second, difference`` of
        the recall by name, for classes with pictures; ``verdict``, a sentence.

    Raises:
        ConfigError: There is no picture, or the arrays differ in length.
    """
    count = len(targets)
    if not count or any(len(values) != count for one in (first, second) for values in (one.right, one.nll)):
        raise ConfigError(
            f"expected scores of both models for the same pictures, one or more, but got {len(first.right)} and "
            f"{len(second.right)} for {count}"
        )
    hits = first.right.astype(float) - second.right
    losses = np.asarray(first.nll, dtype=float) - second.nll
    of_acc, of_loss = bootstrap_intervals(
        lambda drawn: [float(drawn @ each / count) for each in (hits, losses)], count, resamples=resamples, seed=seed
    )
    table = {
        "both_right": int((first.right & second.right).sum()),
        "only_first": int((first.right & ~second.right).sum()),
        "only_second": int((~first.right & second.right).sum()),
        "both_wrong": int((~first.right & ~second.right).sum()),
    }
    result: dict[str, Any] = {
        "n": count,
        "acc": _side_by_side(first.right, second.right, hits, of_acc),
        "loss": _side_by_side(first.nll, second.nll, losses, of_loss),
        "table": table,
        "mcnemar_p": mcnemar(table["only_first"], table["only_second"]),
        "per_class": _per_class(first, second, targets, class_names),
    }
    result["verdict"] = verdict(result, names)
    return result


def verdict(result: dict[str, Any], names: tuple[str, str]) -> str:
    """Return a comparison as a sentence a person can act on.

    Args:
        result: What `compare` returns.
        names: What the models are called.
    """
    lead = result["table"]["only_first"] - result["table"]["only_second"]
    (low, high), points = result["acc"]["ci"], 100 * result["acc"]["difference"]
    better, other = names if lead >= 0 else names[::-1]
    if lead < 0:
        points, low, high = -points, -high, -low
    p = result["mcnemar_p"]
    chance = f"p {'< 0.001' if p < 0.001 else f'= {p:.2g}'}"
    interval = f"{points:+.1f} points (95 % interval {100 * low:+.1f} to {100 * high:+.1f}), {chance}"
    if lead == 0:
        return f"{better} and {other} are right on equally many of {result['n']:,} pictures: {interval}"
    sentence = f"{better} is right on {abs(lead):,} more of {result['n']:,} pictures than {other}: {interval}"
    return sentence if p < LEVEL else f"{sentence}; that may be chance"


def compare_figures(
    first: Callable[[npt.NDArray[Any]], Sequence[float] | npt.NDArray[Any]],
    second: Callable[[npt.NDArray[Any]], Sequence[float] | npt.NDArray[Any]],
    figures: Sequence[Figure],
    count: int,
    *,
    names: tuple[str, str],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Compare two models by figures of the same pictures, drawn together. Differences are first minus second.

    Args:
        first: From how often each picture counts, ``(N,)``, to the figures of the model in question; NaN: undefined.
        second: The same of the one it is held against.
        figures: What they are, the one that counts most first; their values are not looked at.
        count: N.
        names: What the models are called in the verdict.
        seed: Of the bootstrap.
        resamples: Bootstrap resamples of the pictures.

    Returns:
        ``n``; ``figures``, a list of ``key, of, label, unit, higher_is_better, first, second, difference, ci``, the
        last four ``None`` where undefined; ``verdict``, a sentence.
    """
    ones = np.ones(count)
    sides = np.array([first(ones), second(ones)], dtype=float)
    with np.errstate(invalid="ignore"):
        bounds = bootstrap_intervals(
            lambda drawn: np.subtract(first(drawn), second(drawn)), count, resamples=resamples, seed=seed
        )
    rows = [
        {
            **{name: getattr(figure, name) for name in ("key", "of", "label", "unit", "higher_is_better")},
            "first": known_value(sides[0, at]),
            "second": known_value(sides[1, at]),
            "difference": known_value(sides[0, at] - sides[1, at]),
            "ci": list(bounds[at]) if np.isfinite(bounds[at]).all() else None,
        }
        for at, figure in enumerate(figures)
    ]
    return {"n": count, "figures": rows, "verdict": _figure_verdict(rows[0], names, count)}


def figures_compared(values: Mapping[str, Any]) -> str:
    """Return the differences of the figures of all pictures after the first, from what `compare_figures` returns."""
    parts = []
    for row in values["figures"][1:]:
        if row["of"] is None and row["ci"] is not None:
            side = "higher" if row["higher_is_better"] else "lower"
            parts.append(f"{row['label']} {_moved(row, row['difference'])} ({_moved(row, row['ci'][0])} to "
                         f"{_moved(row, row['ci'][1])}), {side} is better")  # fmt: skip
    return "; ".join(parts)


def figure_differences(splits: Mapping[str, Mapping[str, Any]]) -> list[Sequence[object]]:
    """Return the rows of a table of what `compare_figures` returns by split, the columns' names first."""
    rows: list[Sequence[object]] = [("split", "figure", "of", "value", "against", "difference", "low", "high")]
    for split, values in splits.items():
        for row in values["figures"]:
            numbers = (row["first"], row["second"], row["difference"], *(row["ci"] or (None, None)))
            rounded = (None if value is None else round(value, 6) for value in numbers)
            rows.append((split, row["key"], row["of"], *rounded))
    return rows


def _figure_verdict(row: Mapping[str, Any], names: tuple[str, str], count: int) -> str:
    if row["difference"] is None or row["ci"] is None:
        return f"{row['label']} of {names[0]} and {names[1]} cannot be told on {count:,} pictures"
    better = (row["difference"] > 0) == row["higher_is_better"] or not row["difference"]
    winner, loser = names if better else names[::-1]
    low, high = (_moved(row, bound) for bound in row["ci"])
    ours, theirs = (_valued(row, row[side]) for side in (("first", "second") if better else ("second", "first")))
    sentence = (
        f"{row['label']}: {winner} {ours}, {loser} {theirs} on {count:,} pictures; {names[0]} minus {names[1]} "
        f"{_moved(row, row['difference'])} (95 % interval {low} to {high})"
    )
    return f"{sentence}; that may be chance" if row["ci"][0] <= 0 <= row["ci"][1] else sentence


def _valued(row: Mapping[str, Any], value: float) -> str:
    return f"{value:.1%}" if row["unit"] == "share" else f"{value:.4g}"


def _moved(row: Mapping[str, Any], value: float) -> str:
    return f"{100 * value:+.1f} points" if row["unit"] == "share" else f"{value:+.3g}"


def _side_by_side(
    first: npt.NDArray[Any],
    second: npt.NDArray[Any],
    difference: npt.NDArray[np.float64],
    interval: tuple[float, float],
) -> dict[str, Any]:
    return {
        "first": float(first.mean()),
        "second": float(second.mean()),
        "difference": float(difference.mean()),
        "ci": list(interval),
    }


def _per_class(
    first: Outcomes, second: Outcomes, targets: npt.NDArray[np.int64], class_names: Sequence[str]
) -> dict[str, dict[str, float]]:
    classes = len(class_names)
    support = np.bincount(targets, minlength=classes)
    ours = np.bincount(targets, first.right, classes)
    theirs = np.bincount(targets, second.right, classes)
    return {
        name: {
            "n": int(support[index]),
            "first": float(ours[index] / support[index]),
            "second": float(theirs[index] / support[index]),
            "difference": float((ours[index] - theirs[index]) / support[index]),
        }
        for index, name in enumerate(class_names)
        if support[index]
    }
