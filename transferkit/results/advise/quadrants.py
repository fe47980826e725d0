"""The lectures' four quadrants of transfer learning with numbers: how many pictures, how like the source, how even."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from transferkit.models.unlike.two_sample import TwoSamples
from transferkit.results.advise.halving import Gap
from transferkit.results.advise.likeness import NEAR
from transferkit.show.words import value_text

__all__ = ["FEW", "MUCH", "DepthRow", "Quadrants", "amount_of"]

MUCH: Final = 10_000
"""Training pictures from which on the lectures speak of much data."""

FEW: Final = 50
"""Pictures of a class up to which ours were few: between 20, where the solved head decides, and 100, where it does not
(`tests/bench/RESULTS.md`)."""

UNEVEN: Final = 10
"""A largest class so many times the smallest is worth a word, as `check` has it."""


@dataclass(frozen=True)
class DepthRow:
    """The probe on the features of one layer.

    Attributes:
        layer: Its name.
        width: Of its features.
        value: Of the figure that candidates are ranked by.
        ci: Its 95 % interval; ``None`` where there is none.
        lead: How far the deepest layer is behind it; ``None`` of the deepest layer itself.
    """

    layer: str
    width: int
    value: float | None
    ci: tuple[float, float] | None
    lead: Gap | None


@dataclass(frozen=True)
class Quadrants:
    """The data set in the lectures' terms.

    Attributes:
        pictures: Training pictures.
        classes: Training pictures by stratum: of classes by class, of labels by label; empty of numbers.
        noun: What the strata are: ``"class"`` or ``"label"``.
        shift: How far the network's channels are from where they were on the source, see `norm_shift`.
        source: The test against pictures like the source's; ``None`` where none were named.
        depth: The probe at every depth, from input to output; empty where that was not looked at.
        unit: Of the figure in `depth`.
        backbone: The network that likeness was measured with.
    """

    pictures: int
    classes: Mapping[str, int]
    noun: str = "class"
    shift: float | None = None
    source: TwoSamples | None = None
    depth: tuple[DepthRow, ...] = ()
    unit: str = "share"
    backbone: str = ""

    @property
    def much(self) -> bool:
        """Whether there are many pictures, as the lectures count."""
        return self.pictures >= MUCH

    @property
    def of_a_class(self) -> float:
        """Training pictures of a class in the median; all of them where answers are no classes."""
        filled = [count for count in self.classes.values() if count]
        return float(np.median(filled)) if filled else float(self.pictures)

    @property
    def few(self) -> bool:
        """Whether there are few pictures of a class, as we measured."""
        return self.of_a_class <= FEW

    @property
    def earlier(self) -> DepthRow | None:
        """The layer before the last one whose features are clearly better than the last one's; the best of them."""
        better = [row for row in self.depth if row.lead is not None and row.lead.low > 0]
        return max(better, key=lambda row: 0.0 if row.lead is None else row.lead.lead, default=None)

    @property
    def near(self) -> bool | None:
        """Whether the pictures are like the source; ``None`` where nothing tells."""
        if self.earlier is not None:
            return False
        return None if self.shift is None else self.shift < NEAR

    @property
    def name(self) -> str:
        """The quadrant, in words."""
        likeness = {True: "like the source", False: "unlike the source", None: "how like the source is not known"}
        return f"{'much' if self.much else 'little'} data, {likeness[self.near]}"

    def sentences(self) -> dict[str, str]:
        """Return a sentence each on amount, source, depth and balance, and what the lectures say of the quadrant."""
        return {
            "amount": self._amount(),
            "source": self._source(),
            **({"depth": self._depth()} if self.depth else {}),
            "balance": self._balance(),
            "quadrant": f"{self.name}: {_LECTURES[self.much, self.near]}",
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "pictures": self.pictures,
            "classes": dict(self.classes),
            "much": self.much,
            "few_of_a_class": self.few,
            "near": self.near,
            "shift": self.shift,
            "source": None if self.source is None else vars(self.source),
            "depth": [
                {**vars(row), "ci": None if row.ci is None else list(row.ci),
                 "lead": None if row.lead is None else row.lead.to_dict()} for row in self.depth
            ],
            "measured_with": self.backbone,
            "sentences": self.sentences(),
        }  # fmt: skip

    def with_likeness(
        self, backbone: str, shift: float | None, source: TwoSamples | None, depth: Sequence[DepthRow], unit: str
    ) -> Quadrants:
        """Return it with what a network says of the pictures."""
        return replace(self, backbone=backbone, shift=shift, source=source, depth=tuple(depth), unit=unit)

    def _amount(self) -> str:
        amount = "much" if self.much else "little"
        text = f"{self.pictures:,} training pictures: {amount} data by the lectures' line of about {MUCH:,}"
        filled = [count for count in self.classes.values() if count]
        if not filled:
            return text
        spread = f"{min(filled):,}" if min(filled) == max(filled) else f"{min(filled):,} to {max(filled):,}"
        return f"{text}; {spread} of a {self.noun}, {self.of_a_class:,.0f} in the median"

    def _source(self) -> str:
        if self.shift is None:
            text = f"how like the source they are is not known: {self.backbone} keeps no statistics of its source"
        else:
            side = "like" if self.shift < NEAR else "unlike"
            text = (
                f"{side} the source: channels of {self.backbone} are {self.shift:.2f} deviations from where they were "
                f"on it, by its batch norms (below {NEAR:g}: like)"
            )
        if self.source is None:
            return text
        test = self.source
        differ = "differ from" if test.p < 0.05 else "cannot be told from"
        return (
            f"{text}; they {differ} the pictures of --source (squared MMD {test.mmd2:.3f}, p = {test.p:.3f}, "
            f"{test.n:,} and {test.m:,} pictures)"
        )

    def _depth(self) -> str:
        last, earlier = self.depth[-1], self.earlier
        if earlier is not None and earlier.lead is not None:
            return (
                f"features of {earlier.layer} are clearly better than the last ones: "
                f"{value_text(earlier.value, self.unit)} against {value_text(last.value, self.unit)}"
            )
        first = self.depth[0]
        return (
            f"no earlier layer is clearly better than the last one: {value_text(first.value, self.unit)} at "
            f"{first.layer}, {value_text(last.value, self.unit)} at the end"
        )

    def _balance(self) -> str:
        filled = {name: count for name, count in self.classes.items() if count}
        if not filled:
            return "answers are numbers, which have no classes to be uneven"
        largest, smallest = max(filled, key=filled.__getitem__), min(filled, key=filled.__getitem__)
        ratio, share = filled[largest] / filled[smallest], filled[largest] / self.pictures
        size = f"the largest {self.noun} ({largest}) is {ratio:.1f} times the smallest ({smallest})"
        if ratio < UNEVEN:
            return f"{size}; always saying {largest} would be right on {share:.1%}"
        return f"uneven: {size}, and {share:.1%} of all pictures - read balanced figures beside the first one"


_LECTURES: Final[Mapping[tuple[bool, bool | None], str]] = {
    (False, True): "train the last layer first, and go on only where held-out pictures gain",
    (False, False): "the hardest; fit the model to the amount of data, and try earlier features",
    (False, None): "train the last layer first, and try earlier features",
    (True, True): "fine-tune a few layers, or all",
    (True, False): "fine-tune most layers, or all",
    (True, None): "fine-tune most layers, or all",
}
"""What the founding lectures recommend, by whether there is much data and whether it is like the source."""


def amount_of(pictures: int, counts: Mapping[str, int], names: Sequence[str]) -> Quadrants:
    """Return what is known without a network.

    Args:
        pictures: Training pictures.
        counts: By stratum, see `ImageIndex.counts`.
        names: Of the answers; where they are the strata, these are classes or labels.
    """
    classes = {name: count for name, count in counts.items() if name in names}
    several = sum(classes.values()) != pictures
    return Quadrants(pictures, classes, "label" if several else "class")
