"""The small frozen records that travel between the rooms; standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["DataConfig", "Finding", "ImageRecord", "SkippedFile"]


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One labelled picture of a data set.

    Attributes:
        path: Where the file lies, as the user wrote it (not resolved).
        label: Class name.
        split: ``"train"``, ``"val"`` or ``"test"``.
        sha256: Hex digest of the file's bytes.
        group: Pictures of one group never sit in two splits; ``None`` for a picture on its own.
        same_as: The smallest `sha256` of the files with equal pixels; ``None`` where no file of other bytes has them.
        unit: The name of what it stays together with, in splits and folds, for any of these reasons; ``None`` where
            that was not looked at.
    """

    path: str
    label: str
    split: str
    sha256: str
    group: str | None = None
    same_as: str | None = None
    unit: str | None = None

    @property
    def content(self) -> str:
        """What pictures of equal pixels have in common, whatever their bytes."""
        return self.same_as or self.sha256


@dataclass(frozen=True, slots=True)
class SkippedFile:
    """A file that is not part of the data set, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Finding:
    """Something worth telling of a data set.

    Attributes:
        kind: What it is; code decides by this, never by the message.
        message: A sentence for people.
        items: The files, classes or groups that it is about, as the message has them.
    """

    kind: str
    message: str
    items: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DataConfig:
    """The preparation of pictures for a backbone: the facts that travel with its weights.

    Attributes:
        image_size: ``(height, width)`` in pixels.
        mean: Per channel, on [0, 1].
        std: Per channel, on [0, 1].
        interpolation: ``"nearest"``, ``"bilinear"``, ``"bicubic"`` or ``"lanczos"``, for enlarging; pictures are
            always made smaller by area averaging.
        crop_pct: Share of the short side that the centre crop of evaluation keeps, in (0, 1].
        crop_mode: ``"center"`` (keep the aspect ratio, crop the centre) or ``"squash"`` (no crop).
    """

    image_size: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    @property
    def decode_side(self) -> int:
        """Short side, in pixels, that a decoded picture keeps at least: twice the longer side of the input.

        One number for training, evaluation and prediction, so that all three see the same decoded picture.
        """
        return 2 * max(self.image_size)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataConfig:
        """Rebuild a record from `to_dict`'s values."""
        return cls(
            image_size=(int(values["image_size"][0]), int(values["image_size"][1])),
            mean=(float(values["mean"][0]), float(values["mean"][1]), float(values["mean"][2])),
            std=(float(values["std"][0]), float(values["std"][1]), float(values["std"][2])),
            interpolation=str(values["interpolation"]),
            crop_pct=float(values["crop_pct"]),
            crop_mode=str(values["crop_mode"]),
        )
