"""How unlike the training pictures the pictures of a run are, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transferkit.runs.files import RunFiles, number

__all__ = ["beyond_text", "likeness", "told_texts", "whole_text"]

DIFFERS = 0.05

WORDS = {"distance": "distance from the training pictures", "probability": "largest probability"}


def beyond_text(values: Mapping[str, Any]) -> str:
    """Return how many pictures of a split are further than nearly all held-out ones."""
    return f"{values['beyond_95']:.1%} are further from the training pictures than 95% of the run's val pictures"


def whole_text(values: Mapping[str, Any]) -> str | None:
    """Return whether the pictures of a split as a whole differ from the run's val pictures; ``None`` where untested."""
    if "p" not in values:
        return None
    verdict = "differs" if values["p"] < DIFFERS else "does not differ"
    first, second = values["compared"]
    return (
        f"as a whole the folder {verdict} from the run's val pictures: MMD² {values['mmd2']:.4f}, p {values['p']:.3f} "
        f"({first} with {second} pictures)"
    )


def told_texts(values: Mapping[str, Any], others: Mapping[str, Any] | None) -> list[str]:
    """Return how well each score tells the pictures of no class from those of a split."""
    if others is None:
        return []
    return [
        f"{others['n']:,} pictures of {others['data']} by the {WORDS[key]}: AUROC {figures['auroc']:.3f}, "
        f"{figures['fpr95']:.1%} pass where 95% of the known do"
        for key, figures in values.get("told", {}).items()
    ]


def likeness(files: RunFiles) -> list[str]:
    """Return sentences for the page of a run: what its model keeps, or what an evaluation found, by split."""
    values = files.metrics.get("unlike_training") or {}
    if number(values.get("held_out")) is not None and number(values.get("pictures")) is not None:
        return [
            f"The model keeps means and covariance of the features of {values['pictures']:,} training pictures. Each "
            f"prediction says which share of the {values['held_out']:,} val pictures is nearer to them "
            "(unlike_training); predict --unknown 0.95 gives no answer beyond 95% of them."
        ]
    sentences = []
    for split, row in values.items():
        if not isinstance(row, Mapping) or number(row.get("beyond_95")) is None:
            continue
        noun = "pictures" if split == "all" else f"{split} pictures"
        sentences.append(f"Of the {noun} {beyond_text(row)}.")
        whole = whole_text(row)
        sentences += [f"{whole[0].upper()}{whole[1:]}."] if whole else []
        sentences += [f"{text}." for text in told_texts(row, files.metrics.get("unlike"))]
    return sentences
