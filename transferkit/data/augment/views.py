"""The views of a decoded picture: as in evaluation, or augmented by a seed of its content and a number."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from transferkit.data.augment.draws import Piece
from transferkit.data.augment.transform import Transform
from transferkit.data.images.decode import Pixels
from transferkit.data.masks.annotation import Annotation

__all__ = ["EVALUATION", "PART", "REPEAT", "Renderer", "Views", "sample_seed"]

EVALUATION = 0
"""The number of the evaluation view of a picture whose features are taken; augmented views count from 1."""

REPEAT = 1 << 32
"""Added to the number of a view each time that its picture comes again in an epoch, so that it is augmented anew."""

PART = REPEAT << 32
"""Added to the number of a view for each window of its picture that comes before: windows are views of their own."""


def sample_seed(seed: int, view: int, sha256: str) -> int:
    """Return the seed of one augmented view of one picture, below 2**63.

    It depends on the run's seed, the number of the view (in training the epoch) and the picture, and on nothing else:
    not on worker, rank, batch or order.
    """
    digest = hashlib.blake2b(f"{seed}:{view}:{sha256}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class Renderer(Protocol):
    """Anything that makes views of a decoded picture."""

    @property
    def evaluation(self) -> Transform:
        """The transform of the evaluation view; it says how large pictures are decoded and views are."""

    def render(
        self, pixels: Pixels, sha256: str, views: Sequence[int], whole: tuple[int, int] | None = None
    ) -> Sequence[Pixels | Piece]:
        """Return views ``(h, w, 3) uint8`` of a picture ``(H, W, 3) uint8``, or what the device needs for them.

        Args:
            pixels: The picture, as it was decoded.
            sha256: What it is known by.
            views: Which, by their numbers.
            whole: Height and width of its file, upright, where it may have been decoded at a fraction of them.
        """


@dataclass(frozen=True)
class Views:
    """A picture as in evaluation, and augmented as often as there are numbers.

    View k of a picture is the same on every machine, whatever else is computed.

    Attributes:
        evaluation: The transform of views in `plain`.
        augmented: The transform of the others; ``None`` to show every view as in evaluation.
        count: Augmented views of each picture whose features are taken.
        seed: Of the augmentation.
        plain: Numbers of the views that are shown as in evaluation, below `REPEAT`.
        hands_over: Whether `render` leaves augmentation to the device, where `augmented` can be drawn for it.
        cycle: Augmented views that come again and again in training, those of each picture whose features are taken;
            0 where every epoch has one of its own.
    """

    evaluation: Transform
    augmented: Transform | None = None
    count: int = 0
    seed: int = 0
    plain: frozenset[int] = frozenset({EVALUATION})
    hands_over: bool = False
    cycle: int = 0

    def number(self, view: int) -> int:
        """Return which view of a picture is shown by this number."""
        return view if not self.cycle else 1 + (view % REPEAT + view // REPEAT) % self.cycle

    def row(self, view: int) -> int:
        """Return which one it is among those of a `cycle`, after the evaluation view, which is 0."""
        return self.number(view) if self.cycle and view % REPEAT not in self.plain else EVALUATION

    def seed_of(self, sha256: str, view: int) -> int:
        """Return the seed of one view of one picture; where it is shown as in evaluation, the number of its window."""
        return view // PART if view % REPEAT in self.plain else self._seed(view, sha256)

    def _seed(self, view: int, sha256: str) -> int:
        return sample_seed(self.seed, self.number(view), sha256)

    def carry(self, pixels: Pixels, annotation: Annotation, sha256: str, view: int) -> tuple[Pixels, Annotation]:
        """Return one view of a picture with the answers on its pixels, by its number; see `Transform.carry`."""
        if self.augmented is None or view % REPEAT in self.plain:
            return self.evaluation.carry(pixels, annotation, part=view // PART)
        return self.augmented.carry(pixels, annotation, self._seed(view, sha256))

    def render(
        self, pixels: Pixels, sha256: str, views: Sequence[int], whole: tuple[int, int] | None = None
    ) -> list[Pixels | Piece]:
        """Return views ``(h, w, 3) uint8`` of a picture ``(H, W, 3) uint8``, by their numbers; see `Renderer`."""
        shown: list[Pixels | Piece] = []
        for view in views:
            if self.augmented is None or view % REPEAT in self.plain:
                shown.append(self.evaluation(pixels, whole=whole, part=view // PART))
                continue
            show = self.augmented.draw if self.hands_over and self.augmented.drawable else self.augmented
            shown.append(show(pixels, self._seed(view, sha256)))
        return shown
