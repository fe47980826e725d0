"""Views whose size depends on the epoch: a training that begins on small pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from transferkit.core.records import DataConfig
from transferkit.data.augment.transform import Transform
from transferkit.data.augment.views import REPEAT, Views
from transferkit.data.images.annotation import Annotation
from transferkit.data.images.decode import Pixels
from transferkit.options.sizes import TrainSize, train_size_problems, train_sizes

__all__ = ["SizedViews", "size_problems", "sized_views"]


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
    ) -> list[Pixels]:
        """Return views of a picture, each at the size of its epoch; see `Views.render`."""
        return [image for view in views for image in self._of(view).render(pixels, sha256, [view], whole)]

    def _of(self, view: int) -> Views:
        return self.epochs[min(view % REPEAT, len(self.epochs) - 1)]


def sized_views(
    plain: Views, augmented: Callable[[DataConfig], Transform], sides: Sequence[int], epochs: Sequence[int | None]
) -> Views:
    """Return how pictures are shown in training.

    Args:
        plain: The views of evaluation, with seed and the epochs that have them.
        augmented: Builds the transform of the others for a config.
        sides: Of training pictures in pixels; the last one holds where no epoch has its own. Of none it is the model's.
        epochs: The side of each epoch; ``None`` for any. Empty where all have the same.
    """
    config = plain.evaluation.config

    def views(side: int | None) -> Views:
        size = config.image_size if side is None else (side, side)
        return replace(plain, augmented=augmented(replace(config, image_size=size)))

    last = sides[-1] if sides else None
    if not epochs:
        return views(last)
    each = {side: views(last if side is None else side) for side in {*epochs, last}}
    whole = each[last]
    return SizedViews(
        plain.evaluation,
        whole.augmented,
        seed=plain.seed,
        plain=plain.plain,
        epochs=tuple(each[side] for side in epochs),
    )


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
