"""What a network sees of the pictures: features as they are and mirrored, and a probe. Nothing else loads torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.records import ImageRecord
from transferkit.data.augment.transform import eval_transform, mirror_transform
from transferkit.data.augment.views import Views
from transferkit.data.batches.dataset import Picture
from transferkit.data.batches.statistics import measured
from transferkit.data.index.index import ImageIndex
from transferkit.features.engine.compute import FrozenBackbone
from transferkit.features.engine.taps import find_taps
from transferkit.features.extract.extract import frozen_backbone, make_compute
from transferkit.features.extract.extraction import extract_pictures
from transferkit.features.probe.out_of_fold import FoldedProbe, fit_folded
from transferkit.features.store.store import FeatureStore
from transferkit.models.backbones.registry import is_backbone
from transferkit.models.heads.solver import LabelledRows
from transferkit.options.features import CheckConfig

__all__ = ["Sight", "knows", "look", "prepare"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Sight:
    """What a network sees of the pictures of an index.

    Attributes:
        records: The picture of each row.
        plain: Features (N, D) float32.
        mirrored: Of the mirror images (N, D) float32.
        y: Class indices (N,); ``None`` where pictures have not one class each.
        probe: Fitted on `plain`; ``None`` where there are too few pictures to hold any out.
        facts: What the features were made with.
    """

    records: tuple[ImageRecord, ...]
    plain: npt.NDArray[np.float32]
    mirrored: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64] | None
    probe: FoldedProbe | None
    facts: dict[str, Any]


def knows(config: CheckConfig) -> bool:
    """Whether there is a backbone of that name, whatever its weights."""
    return is_backbone(config.backbone)


def prepare(config: CheckConfig) -> FrozenBackbone:
    """Return the network. Raises `BackboneError` where the name is unknown or the weights cannot be had."""
    return frozen_backbone(config.backbone, config.weights, config.size, config.seed, config.channels)


def look(config: CheckConfig, frozen: FrozenBackbone, index: ImageIndex, *, progress: Progress | None = None) -> Sight:
    """Return the features of all pictures of an index, through the store, and a probe on them.

    Args:
        config: The machine to compute on, and the store.
        frozen: The network.
        index: Says which pictures, and their labels.
        progress: Called with pictures computed and pictures to compute.

    Raises:
        TransferkitError: As `extract_pictures` says.
    """
    usual = frozen.backbone.data_config
    transform = config.prepared(usual)
    if frozen.backbone.measures:
        transform = measured(transform, {record.sha256: record.path for record in index.split("train")})
        frozen = frozen.prepared(transform)
    views = Views(eval_transform(transform), mirror_transform(transform), 1)
    compute = make_compute(config.accelerator, config.precision, config.workers, config.compile, config.batch_size)
    pictures = [Picture(record.path, record.sha256) for record in index.records]
    extraction = extract_pictures(
        pictures, frozen, find_taps(frozen.backbone, "pooled", None), views, FeatureStore(config.store), compute,
        progress=progress,
    )  # fmt: skip
    rows = next(iter(extraction.rows.values()))
    good = [at for at in range(len(pictures)) if at not in extraction.failures]
    records = tuple(index.records[at] for at in good)
    plain = rows[0][good]
    y: npt.NDArray[Any] | None = None
    if index.targets.annotate((), ()) is None:
        encoded = index.targets.encode(record.label for record in records)
        y = encoded if encoded.ndim == 1 and np.issubdtype(encoded.dtype, np.integer) else None
    probe = None
    if y is not None and len(np.unique(y)) > 1:
        probe = fit_folded(LabelledRows(plain, y, len(index.class_names), _groups(records)), seed=config.seed)
    facts = {
        "backbone": frozen.backbone.name,
        "weights": frozen.backbone.weights_source,
        "weights_sha256": frozen.digest,
        "image_size": list(transform.image_size),
        "precision": extraction.precision.precision,
        "computed": extraction.computed,
    }
    return Sight(records, plain, rows[1][good], y, probe, facts)


def _groups(records: Sequence[ImageRecord]) -> list[str]:
    return [record.group or record.content for record in records]
