"""The size of training pictures in each epoch, as a pure function of phases and sizes."""

from __future__ import annotations

from collections.abc import Sequence

from transferkit.models.tuning.selectors import HEAD, Groups
from transferkit.options.sizes import TrainSize, train_sizes
from transferkit.training.plan.phases import Phase

__all__ = ["epoch_sizes", "size_words"]


def epoch_sizes(phases: Sequence[Phase], sizes: TrainSize, groups: Groups) -> list[int | None]:
    """Return the side of training pictures in each epoch over all phases; ``None``: as they are evaluated.

    Several sizes share the epochs of fine-tuning out between them, in equal parts, in the order in which they are
    named; what is left over goes to the first ones. The last one stands through the end. Epochs of the head alone take
    the size of the epoch after them, unless they are all that is trained.

    Args:
        phases: In order.
        sizes: One, several, or ``None`` for the model's own.
        groups: The model's.
    """
    sides = train_sizes(sizes)
    alone = [phase.trained(groups) == (HEAD,) for phase in phases]
    counted = [
        not phase.test_view and (not head or all(alone)) for phase, head in zip(phases, alone, strict=True)
    ]  # fmt: skip
    count = sum(phase.epochs for phase, tunes in zip(phases, counted, strict=True) if tunes)
    result: list[int | None] = []
    epoch = 0
    for phase, tunes in zip(phases, counted, strict=True):
        for _ in range(phase.epochs):
            place = min(epoch, count - 1) * len(sides) // count if count else 0
            result.append(None if phase.test_view or not sides else sides[place])
            epoch += tunes
    return result


def size_words(sizes: Sequence[int | None], usual: int) -> str:
    """Return in words which epochs have which size, such as ``"128 px for 4 epochs, 160 px for 3"``.

    Args:
        sizes: Of each epoch.
        usual: The side of a picture as it is evaluated.
    """
    runs: list[list[int]] = []
    for size in sizes:
        side = size or usual
        if runs and runs[-1][0] == side:
            runs[-1][1] += 1
        else:
            runs.append([side, 1])
    first, *rest = runs
    words = [f"{first[0]} px for {first[1]} epoch{'s' if first[1] > 1 else ''}"]
    return ", ".join([*words, *(f"{side} px for {count}" for side, count in rest)])
