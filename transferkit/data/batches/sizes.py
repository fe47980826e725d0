"""Views whose size depends on the epoch: a training that begins on small pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from transferkit.core.records import DataConfig
from transferkit.data.augment.draws import Piece
from transferkit.data.augment.transform import Transform
from transferkit.data.augment.views import REPEAT, Views
from transferkit.data.images.decode import Pixels
from transferkit.data.masks.annotation import Annotation
from transferkit.options.sizes import TrainSize, scaled_to, train_size_problems, train_sizes

__all__ = ["SizedViews", "TrainSizes", "size_problems"]


@dataclass(frozen=True)
class SizedViews(Views):
    """Views of another size in each epoch; the number of a view is its epoch's, as everywhere in training.

    Attributes:
        epochs: The views of each epoch; of later ones those of the last.
    """

    epochs: tuple[Views, ...] = ()

    def carry(self, pixels: Pixels, annotation: Annotation, sha256: str, view: int) -> tuple[Pixels, Annotation]:
        """Return one view of a picture with the answers on its pixels, at the size of its epoch."""
        return self._of(view).carry(pixels, annotation, sha256, view)

    def render(
        self, pixels: Pixels, sha256: str, views: Sequence[int], whole: tuple[int, int] | None = None
    ) -> list[Pixels | Piece]:
        """Return views of a picture, each at the size of its epoch; see `Views.render`."""
        return [image for view in views for image in self._of(view).render(pixels, sha256, [view], whole)]

    def _of(self, view: int) -> Views:
        return self.epochs[min(view % REPEAT, len(self.epochs) - 1)]


@dataclass(frozen=True)
class TrainSizes:
    """The sizes of training pictures, and which epoch has which.

    Attributes:
        sides: In pixels, of rectangles the longer ones, in the order in which they come; empty for that of the model's
            input.
        epochs: The side of each epoch, from 0; ``None`` for any. Empty where nobody has said: then it is the last.
    """

    sides: tuple[int, ...] = ()
    epochs: tuple[int | None, ...] = ()

    @property
    def vary(self) -> bool:
        """Whether some epochs have another size than others; epochs shown as in evaluation aside."""
        return len(set(self.epochs) - {None}) > 1

    def last(self, config: DataConfig) -> DataConfig:
        """Return how pictures are prepared in the end, for a `config` of evaluation."""
        return _sized(config, self.sides[-1]) if self.sides else config

    def views(self, plain: Views, augmented: Callable[[DataConfig], Transform]) -> Views:
        """Return how pictures are shown in training.

        Args:
            plain: The views of evaluation, with seed and the epochs that have them.
            augmented: Builds the transform of the others for a config.
        """
        config = plain.evaluation.config
        last = replace(plain, augmented=augmented(self.last(config)))
        if not self.vary:
            return last
        each = {
            side: last if side is None else replace(plain, augmented=augmented(_sized(config, side)))
            for side in set(self.epochs)
        }
        return SizedViews(
            plain.evaluation, last.augmented, seed=plain.seed, plain=plain.plain, hands_over=plain.hands_over,
            cycle=plain.cycle, epochs=tuple(each[side] for side in self.epochs),
        )  # fmt: skip


def _sized(config: DataConfig, side: int) -> DataConfig:
    return replace(config, image_size=scaled_to(side, config.image_size))


def size_problems(train_size: TrainSize, config: DataConfig, *, tile: bool) -> list[str]:
    """Return what is wrong with the sizes of training pictures, a sentence each.

    Args:
        train_size: As `ImageData` is given it.
        config: How pictures are prepared for the model.
        tile: Whether they are seen in windows.
    """
    problems = train_size_problems(train_size, tile=tile, name="train_size")
    side = config.decode_side
    if not problems and side is not None and max(train_sizes(train_size), default=0) > side > 1:
        problems.append(
            f"train_size is {max(train_sizes(train_size))}, and pictures for an image_size of {max(config.image_size)} "
            f"are decoded at {side} pixels - raise image_size, or lower it"
        )
    return problems
