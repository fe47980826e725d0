"""The split of a picture: a seeded hash of its content.

A picture's place follows from its own bytes (or its group) and the seed alone, so adding files never moves old ones,
renaming files moves nothing, and equal pictures share a split. Every stratum (a class, say) is cut by the same hash, so
the shares hold in each in expectation; exact quotas would make a picture's place depend on its neighbours, and adding
one file would move others. Two exceptions: a stratum left without a training picture gets its unit nearest to train
moved there; and a copy under other bytes, or a picture that ties two groups together, may take along those it belongs
to, as they have one place.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from transferkit.data.index.families import Families

__all__ = ["Item", "assign_splits", "unit_interval", "units_of"]


@dataclass(frozen=True, slots=True)
class Item:
    """A picture as far as splitting goes: its content, its stratum, and what it must stay together with.

    Attributes:
        sha256: Of its bytes; of pictures of equal pixels the smallest one.
        stratum: A number; below 0 where the picture stands for nothing that train has to show.
        group: Its group, if it has one.
        near: The number of its family of near copies, if it has one.
    """

    sha256: str
    stratum: int
    group: str | None = None
    near: int | None = None


def unit_interval(seed: int, key: str) -> float:
    """Hash `key` to a number in [0, 1), evenly spread and independent of platform and Python version."""
    digest = hashlib.sha256(f"{seed}:{key}".encode("utf-8", "surrogateescape")).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53  # 53 bits: exact in a float, never rounded up to 1


def assign_splits(
    items: Sequence[Item], *, val_split: float, test_split: float, seed: int
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Give every item a split.

    With ``u = unit_interval(seed, key)`` an item goes to test where ``u < test_split``, to val where
    ``u < test_split + val_split``, and to train otherwise. The key is that of the item's *unit*: its group if it has
    one, else its content; groups that share a picture's content, or near copies, are one unit, whose smallest key
    counts.

    Args:
        items: The pictures.
        val_split: Share for validation, in [0, 1).
        test_split: Share for testing, in [0, 1); the sum of both is below 1.
        seed: Another seed, another split.

    Returns:
        The split of each item, in order; and the strata, sorted, for which a unit was moved to train because none of
        their pictures was there.
    """
    units = units_of(items)
    position = {unit: unit_interval(seed, unit) for unit in set(units)}
    split = {unit: _split_at(u, val_split, test_split) for unit, u in position.items()}
    by_stratum: dict[int, set[str]] = defaultdict(set)
    for item, unit in zip(items, units, strict=True):
        by_stratum[item.stratum].add(unit)
    moved = []
    for stratum, members in sorted(by_stratum.items()):
        if stratum >= 0 and all(split[unit] != "train" for unit in members):
            # A move only ever adds to train, so it cannot undo an earlier one.
            split[max(members, key=lambda unit: (position[unit], unit))] = "train"
            moved.append(stratum)
    return tuple(split[unit] for unit in units), tuple(moved)


def _split_at(u: float, val_split: float, test_split: float) -> str:
    if u < test_split:
        return "test"
    return "val" if u < test_split + val_split else "train"


def units_of(items: Sequence[Item]) -> list[str]:
    """Return each item's unit: the smallest key of all that groups, equal contents and near copies tie it to."""
    families: Families[str] = Families()
    for item in items:
        if item.group is not None:  # "group:" before "image:": a unit with groups is named by one
            families.join((f"group:{item.group}", f"image:{item.sha256}"))
        if item.near is not None:
            families.join((f"near:{item.near}", f"image:{item.sha256}"))
    return [families.name(f"image:{item.sha256}") for item in items]
