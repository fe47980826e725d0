"""The rows of some pictures, in memory and in the store: which are there, which are missing, where new ones go."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import PIL
import torch
import torchvision

from transferkit.core.errors import StoreError, TransferkitWarning
from transferkit.core.text import listing
from transferkit.data.augment.views import EVALUATION, PART, Views
from transferkit.data.batches.dataset import Picture
from transferkit.data.images.decode import UnreadableImage
from transferkit.features.engine.compute import FrozenBackbone
from transferkit.features.engine.taps import Tap
from transferkit.features.store.spec import FeatureSpec, row_key
from transferkit.features.store.store import FeatureSet, FeatureStore
from transferkit.models.backbones.timm_import import timm

__all__ = ["Rows", "StoredRows", "specs"]

SLICE = 4096
"""Rows read at a time."""

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Part:
    """Some of the views at one tap, and the set that they lie in."""

    tap: Tap
    views: tuple[int, ...]
    stored: FeatureSet


class StoredRows:
    """Rows of distinct pictures, backed by a store.

    Args:
        pictures: No two of the same content.
        views: How they are shown.
        specs: The store's sets by tap: of the evaluation view and, where there are any, of the augmented ones.
        store: Where they lie.

    Attributes:
        rows: ``(1 + K, N, D) float32`` by tap, NaN where nothing is known. Empty until `allocate`.
        failures: Reason by position, of pictures known to be unreadable.
        views: 1 + K, the views of each picture.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        views: Views,
        specs: dict[Tap, tuple[FeatureSpec, FeatureSpec | None]],
        store: FeatureStore,
    ) -> None:
        self.pictures = pictures
        self.store = store
        self.rows: dict[Tap, Rows] = {}
        self.failures: dict[int, str] = {}
        self.views = views.count + 1
        self._keys = [
            [row_key(each.sha256, views.seed_of(each.sha256, view + PART * each.part)) for each in pictures]
            for view in range(self.views)
        ]
        self._parts = []
        for tap, (evaluation, augmented) in specs.items():
            self._parts.append(_Part(tap, (EVALUATION,), store.open(evaluation)))
            if augmented is not None:
                self._parts.append(_Part(tap, tuple(range(1, self.views)), store.open(augmented)))
        self._warned = False

    @property
    def first(self) -> FeatureSet:
        """The set that stands for all: work is claimed here, and unreadable pictures are recorded here."""
        return self._parts[0].stored

    def keys(self, positions: Iterable[int]) -> list[bytes]:
        """Return the evaluation keys of some pictures."""
        return [self._keys[EVALUATION][position] for position in positions]

    def widths(self) -> tuple[int, ...] | None:
        """Return the widths of the taps, or ``None`` where the store does not know them all."""
        known = [part.stored.width() for part in self._parts if part.views == (EVALUATION,)]
        return tuple(width for width in known if width is not None) if None not in known else None

    def allocate(self, widths: Sequence[int]) -> None:
        """Make room for the rows, all of them NaN.

        Args:
            widths: Width of each tap's rows.
        """
        taps = dict.fromkeys(part.tap for part in self._parts)
        shape = (self.views, len(self.pictures))
        self.rows = {
            tap: np.full((*shape, width), np.nan, dtype=np.float32) for tap, width in zip(taps, widths, strict=True)
        }

    def read(self, positions: Sequence[int]) -> dict[int, set[int]]:
        """Fill in what the store has.

        Returns:
            The views that are missing, by position; pictures known to be unreadable are left out.
        """
        missing: dict[int, set[int]] = {}
        for start in range(0, len(positions), SLICE):  # a second copy of all rows at once would double the memory
            missing |= self._read_slice(np.asarray(positions[start : start + SLICE], dtype=np.int64))
        return dict(sorted(missing.items()))

    def _read_slice(self, positions: npt.NDArray[np.int64]) -> dict[int, set[int]]:
        unreadable = self.first.failures(self.keys(positions))
        self.failures |= {int(positions[at]): reason for at, reason in unreadable.items()}
        missing: defaultdict[int, set[int]] = defaultdict(set)
        for part in self._parts:
            for view in part.views:
                rows = np.empty((len(positions), self.rows[part.tap].shape[-1]), dtype=np.float32)
                absent = part.stored.read([self._keys[view][position] for position in positions], rows)
                present = np.ones(len(positions), dtype=bool)
                present[absent] = False
                self.rows[part.tap][view, positions[present]] = rows[present]
                for position in positions[absent].tolist():
                    if position not in self.failures:
                        missing[position].add(view)
        return missing

    def add(
        self, places: Sequence[tuple[int, int]], columns: Sequence[Rows], failures: Mapping[int, UnreadableImage]
    ) -> None:
        """Put computed rows in their places, and into the store if it can be written.

        Args:
            places: Position and view of each row.
            columns: ``(len(places), D) float32`` of each tap; none where there are no rows.
            failures: Of pictures that turned out to be unreadable, by position.

        Raises:
            StoreError: A row is not finite.
            StorageError: The disk is full or failing.
        """
        self.failures |= {at: error.reason for at, error in failures.items()}
        lasting = {at: error.reason for at, error in failures.items() if not error.passing}
        unreadable = dict(zip(self.keys(lasting), lasting.values(), strict=True))
        computed = dict(zip(self.rows, columns, strict=True)) if columns else {}
        for part in self._parts:
            mine = [at for at, (_, view) in enumerate(places) if view in part.views]
            new = computed.get(part.tap, self.rows[part.tap][EVALUATION, :0])[mine]
            for at, row in zip(mine, new, strict=True):
                position, view = places[at]
                self.rows[part.tap][view, position] = row
            odd = [places[mine[at]][0] for at in np.flatnonzero(~np.isfinite(new).all(axis=1))]
            if odd:
                raise StoreError(
                    f"features of {listing([self.pictures[at].name for at in odd], limit=5)} are not finite - try "
                    "--precision 32; if that does not help, the weights are damaged, or the picture is one that this "
                    "network cannot take"
                )
            if self._writable():
                keys = [self._keys[places[at][1]][places[at][0]] for at in mine]
                part.stored.add(keys, new, unreadable if part.stored is self.first else {})

    def require_space(self, missing: dict[int, set[int]]) -> None:
        """Refuse to start what the disk has no room for. Raises `StorageError`."""
        if self.first.writable:
            width = sum(rows.shape[-1] for rows in self.rows.values())
            self.store.require_space(sum(map(len, missing.values())) * (4 * width + 64 * len(self.rows)))

    def touch(self) -> None:
        """Mark the sets as used now."""
        for part in self._parts:
            part.stored.touch()

    def _writable(self) -> bool:
        writable = self.first.writable
        if not writable and not self._warned:
            self._warned = True
            warnings.warn(
                f"the feature store {str(self.store.root)!r} cannot be written: what it has is used, new features are "
                "not kept",
                TransferkitWarning,
                stacklevel=2,
            )
        return writable


def specs(
    frozen: FrozenBackbone, taps: Sequence[Tap], views: Views, precision: str
) -> dict[Tap, tuple[FeatureSpec, FeatureSpec | None]]:
    """Return what identifies the features of each tap: of the evaluation view, and of augmented ones if there are any.

    Args:
        frozen: The backbone.
        taps: Where features are taken.
        views: How pictures are shown.
        precision: ``"32"`` or ``"bf16"``.
    """
    versions = {
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "timm": timm.__version__,
        "pillow": PIL.__version__,
        "opencv": cv2.__version__,
    }
    config = views.evaluation.config

    def spec(tap: Tap, transform: dict[str, object]) -> FeatureSpec:
        return FeatureSpec(
            backbone=frozen.backbone.name,
            weights_sha256=frozen.digest,
            layer=tap.layer,
            pool=tap.pool,
            transform={**transform, "config": config.key_values()},
            decode_side=config.decode_side,
            precision=precision,
            versions=versions,
        )

    augmented = views.augmented.describe() if views.augmented is not None and views.count else None
    return {
        tap: (spec(tap, views.evaluation.describe()), spec(tap, augmented) if augmented is not None else None)
        for tap in taps
    }
