"""Backbones as choices of a search: a name, or a network with its own weights and size, as `advise` has them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from transferkit.core.errors import ConfigError, did_you_mean
from transferkit.models.backbones.registry import is_backbone, list_backbones
from transferkit.options.advise import read_backbones

__all__ = ["BACKBONE", "OF_A_NETWORK", "backbone_problems", "flat"]

BACKBONE: Final = "backbone"

OF_A_NETWORK: Final = frozenset({BACKBONE, "image_size", "weights"})
"""Options that say which network it is: its features are extracted once, however many trials have it."""


def flat(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial's values as options of `finetune`: a backbone with weights and size is taken apart."""
    values = dict(params)
    if BACKBONE in values:
        values |= read_backbones([values[BACKBONE]])[0]
    return values


def backbone_problems(choices: Collection[Any], axes: Collection[str]) -> list[str]:
    """Return what is wrong with the backbones of a space, a sentence each.

    Args:
        choices: Of ``backbone``.
        axes: Names of everything that is searched.
    """
    try:
        entries = read_backbones(list(choices))
    except ConfigError as error:
        return [f"space: {BACKBONE}: {error}"]
    known = [name for name in dict.fromkeys(entry[BACKBONE] for entry in entries) if not is_backbone(name)]
    problems = [f"space: unknown backbone {name!r}.{did_you_mean(name, list_backbones())}" for name in known]
    own = sorted({key for entry in entries for key in entry if key != BACKBONE and key in axes})
    return problems + [f"space: {key} is searched, and a backbone of the space names its own - leave one out"
                       for key in own]  # fmt: skip
