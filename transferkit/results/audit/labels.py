"""Likely wrong labels, and classes that a mirror image turns into each other: what held-out predictions tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from transferkit.data.scan.records import Kind
from transferkit.results.audit.record import Issue, Row

if TYPE_CHECKING:
    from transferkit.results.audit.network import Sight

__all__ = ["MirrorPair", "confident_labels", "label_issues", "mirror_pairs", "wrong_labels"]

DOUBT = 0.25
"""A label is doubted where its probability is below this share of what guessing gives, 1 / classes.

Confident learning alone doubts what a weak probe confuses: of 3,409 photos of clothes (62 % right) a quarter. With this
besides, it doubts 3 to 5 % of them, and with 5 % of the labels exchanged it is right in half of its doubts or more."""

TURNED = 0.25
"""Least share of the recognised pictures of a class whose mirror images are recognised as another one. Of ten kinds of
clothes it is 9 % at most, of arrows to the left and to the right 100 %, of the letters b, d, p and q 38 to 51 %."""

FEW = 5
"""Least number of these pictures."""

_SLACK = 1e-6
"""Below a threshold that still counts as reaching it: equal probabilities must not differ by rounding."""

_Probs = npt.NDArray[np.floating]
_Labels = npt.NDArray[np.integer]


def confident_labels(probs: _Probs, y: _Labels) -> npt.NDArray[np.int64]:
    """Return the class that each picture is counted for by confident learning, -1 where it is counted for none.

    A picture is counted for a class where its probability reaches the mean of those who carry that label; for the most
    probable class where it reaches several. The pictures whose class is another than their label are the off-diagonal
    of the confident joint (Northcutt et al. 2021, "Confident learning", equation 1).

    Args:
        probs: Held-out probabilities (N, C), rows summing to 1.
        y: Given labels (N,) in [0, C).
    """
    classes = probs.shape[1]
    sizes = np.bincount(y, minlength=classes)
    sums = np.bincount(y, weights=probs[np.arange(len(y)), y], minlength=classes)
    thresholds = np.where(sizes > 0, sums / np.maximum(sizes, 1), np.inf)
    reached = probs >= thresholds - _SLACK
    count = reached.sum(axis=1)
    chosen = np.where(count > 1, probs.argmax(axis=1), reached.argmax(axis=1))
    return np.where(count > 0, chosen, -1).astype(np.int64)


def wrong_labels(probs: _Probs, y: _Labels) -> npt.NDArray[np.int64]:
    """Return the class that each picture seems to be of where that is not its label, -1 elsewhere.

    Those are doubted that confident learning counts for another class, and whose label has next to no probability.

    Args:
        probs: Held-out probabilities (N, C); rows of NaN are not judged.
        y: Given labels (N,) in [0, C).
    """
    judged = np.flatnonzero(~np.isnan(probs).any(axis=1))
    suggested = np.full(len(y), -1, dtype=np.int64)
    if not len(judged):
        return suggested
    probs, y = probs[judged], y[judged]
    confident = confident_labels(probs, y)
    doubted = (confident >= 0) & (confident != y) & (probs[np.arange(len(y)), y] < DOUBT / probs.shape[1])
    suggested[judged[doubted]] = confident[doubted]
    return suggested


@dataclass(frozen=True)
class MirrorPair:
    """A class whose mirror images are taken for another one.

    Attributes:
        label: Index of the class.
        other: Index of what its mirror images are taken for.
        recognised: Pictures of the class that are recognised as they are.
        turned: Of these, how many are taken for the other class when mirrored.
    """

    label: int
    other: int
    recognised: int
    turned: int


def mirror_pairs(probs: _Probs, mirrored: _Probs, y: _Labels) -> list[MirrorPair]:
    """Return the classes whose pictures, mirrored, are taken for another class.

    Args:
        probs: Held-out probabilities (N, C) of the pictures as they are, by a probe that saw no mirror image; rows of
            NaN are not judged.
        mirrored: Of their mirror images, by the same probe.
        y: Given labels (N,) in [0, C).
    """
    judged = ~np.isnan(probs).any(axis=1)
    probs, mirrored, y = probs[judged], mirrored[judged], y[judged]
    pairs = []
    for label in range(probs.shape[1]):
        recognised = (y == label) & (probs.argmax(axis=1) == label)
        turned = np.bincount(mirrored[recognised].argmax(axis=1), minlength=probs.shape[1])
        turned[label] = 0
        other, total = int(turned.argmax()), int(recognised.sum())
        if turned[other] >= max(FEW, TURNED * total):
            pairs.append(MirrorPair(label, other, total, int(turned[other])))
    return pairs


def label_issues(sight: Sight, names: Sequence[str]) -> tuple[list[Issue], dict[str, Any] | None]:
    """Return the labels that a probe doubts, and the classes that a mirror image turns into each other.

    Args:
        sight: What a network sees.
        names: Of the classes.

    Returns:
        The issues; and the probe's held-out accuracy and confusions as JSON values, ``None`` where there is no probe.
    """
    if sight.probe is None or sight.y is None:
        return [], None
    probs, y = sight.probe.probs(sight.plain), sight.y
    judged = ~np.isnan(probs).any(axis=1)
    guesses = probs[judged].argmax(axis=1)
    confusion = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(confusion, (y[judged], guesses), 1)
    accuracy = float((guesses == y[judged]).mean())
    facts = {"acc": accuracy, "n": int(judged.sum()), "confusion": confusion.tolist(), **sight.probe.choice}
    issues = []
    suggested = wrong_labels(probs, y)
    doubted = np.flatnonzero(suggested >= 0)
    doubted = doubted[np.argsort(probs[doubted, y[doubted]], kind="stable")]
    if len(doubted):
        rows = []
        for at in doubted.tolist():
            own, other = float(probs[at, y[at]]), float(probs[at, suggested[at]])
            label, guess = names[y[at]], names[suggested[at]]
            values = {"label": label, "suggested": guess, "probability": round(own, 5), "of_suggested": round(other, 5)}
            text = f"labelled {label} ({own:.1%}), looks like {guess} ({other:.0%})"
            rows.append(Row((sight.records[at].path,), text, values))
        message = (
            f"likely wrong labels: {len(rows)} of {int(judged.sum())}, such as {rows[0].pictures[0]!r}: {rows[0].text} "
            "- look at them (a probe doubts them on features of pictures that it has not seen; it agrees with "
            f"{accuracy:.0%} of all labels)"
        )
        issues.append(Issue(Kind.WRONG_LABEL, message, tuple(rows)))
    pairs = mirror_pairs(probs, sight.probe.probs(sight.mirrored), y)
    if pairs:
        rows = [
            Row((), f"{names[pair.label]}: {pair.turned} of {pair.recognised} recognised pictures look like "
                f"{names[pair.other]} when they are mirrored",
                {"label": names[pair.label], "other": names[pair.other], "recognised": pair.recognised,
                 "turned": pair.turned})
            for pair in pairs
        ]  # fmt: skip
        what = "; ".join(row.text for row in rows)
        message = f"mirror images are of other classes ({what}) - train with --no-flip"
        issues.append(Issue(Kind.MIRROR, message, tuple(rows)))
    return issues, facts
