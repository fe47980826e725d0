"""The small frozen records that travel between the rooms; standard library only."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

__all__ = [
    "CROP_MODES",
    "DEEPEST",
    "FITS",
    "MAX_SIDE",
    "MOST_CHANNELS",
    "USUAL",
    "DataConfig",
    "Decoding",
    "Finding",
    "Frame",
    "ImageRecord",
    "SkippedFile",
    "Window",
]

MAX_SIDE = 16_384
"""Pixels of the longer side of a model's input at most: of one such picture the first layer alone takes gigabytes."""

DEEPEST: Final = 16
"""Bits of the deepest grey that is decoded."""

CROP_MODES: Final = ("center", "squash", "pad", "tile")
"""See `DataConfig`."""

FITS: Final[Mapping[str, str]] = {"crop": "center", "squash": "squash", "pad": "pad"}
"""The crop modes of whole pictures, by the words that options have for them."""

MOST_CHANNELS: Final = 512
"""Channels of a picture at most: OpenCV resizes no more."""

_COLOUR: Final = re.compile(r"#[0-9a-f]{6}")


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
        families: The same of files, as paths; those of one picture stand together.
    """

    kind: str
    message: str
    items: tuple[str, ...] = ()
    families: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Decoding:
    """The choices in making pixels of a file: facts that travel with a model, which sees pictures as it learnt them.

    Attributes:
        ground: The colour that shows through transparent pixels, ``"#rrggbb"``; white, as on a page.
        grey_bits: How many bits the values of 16-bit grey use, 8 to 16: ``2 ** grey_bits - 1`` and above is white. A
            file that names its own depth, as TIFF can, goes by that.
        max_pixels: The largest picture that is decoded, in pixels of three bytes. Of a JPEG that is decoded at a
            fraction of its size that fraction counts, and the whole may be ten times as large.
        channels: Of a decoded picture: 1 for grey, 3 for RGB, 4 for RGBA or four bands; others are bands of a TIFF or
            of an array.
        value_range: What is black and what is white in pixels deeper than 8 bits, in the file's own values; beyond
            them there is no more. ``None``: as `grey_bits` says.
    """

    ground: str = "#ffffff"
    grey_bits: int = DEEPEST
    max_pixels: int = 100_000_000
    channels: int = 3
    value_range: tuple[float, float] | None = None

    def problems(self) -> list[str]:
        """Return what is wrong with the values, a sentence each."""
        problems = []
        if not _COLOUR.fullmatch(self.ground):
            problems.append(f"ground is {self.ground!r}, expected a colour such as '#ffffff'")
        for name, value, low, high in (
            ("grey_bits", self.grey_bits, 8, DEEPEST),
            ("max_pixels", self.max_pixels, 1, None),
            ("channels", self.channels, 1, MOST_CHANNELS),
        ):
            if value < low or (high is not None and value > high):
                problems.append(f"{name} is {value}, expected at least {low}{f' and at most {high}' if high else ''}")
        if self.value_range is not None:
            low_value, high_value = self.value_range
            if not (math.isfinite(low_value) and math.isfinite(high_value) and low_value < high_value):
                problems.append(f"value_range is {low_value:g} to {high_value:g}, expected a number and a larger one")
        return problems

    def key_values(self) -> dict[str, Any]:
        """Return what pixels depend on, as JSON values: without the limit, and nothing where all is as usual."""
        return {name: value for name, value in self.to_dict().items()
                if name != "max_pixels" and value != getattr(USUAL, name)}  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; what models of before do not know is there only where it is chosen."""
        values: dict[str, Any] = {name: getattr(self, name) for name in ("ground", "grey_bits", "max_pixels")}
        if self.channels != USUAL.channels:
            values["channels"] = self.channels
        if self.value_range is not None:
            values["value_range"] = list(self.value_range)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Decoding:
        """Rebuild a record from its fields; those that are not there are as usual.

        Raises:
            ValueError: A value is out of range.
        """
        ends = values.get("value_range")
        decoding = cls(
            ground=str(values.get("ground", USUAL.ground)),
            grey_bits=int(values.get("grey_bits", USUAL.grey_bits)),
            max_pixels=int(values.get("max_pixels", USUAL.max_pixels)),
            channels=int(values.get("channels", USUAL.channels)),
            value_range=None if ends is None else (float(ends[0]), float(ends[1])),
        )
        if problems := decoding.problems():
            raise ValueError("; ".join(problems))
        return decoding


USUAL: Final = Decoding()
"""How files are decoded unless something else is asked for."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A place in pixels: of a whole picture on the network's input, or of a part of a picture.

    Attributes:
        top: Rows above it.
        left: Columns left of it.
        height: Rows of it, at least 1.
        width: Columns of it, at least 1.
    """

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns of it, to index an array ``(H, W, ...)``."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


@dataclass(frozen=True, slots=True)
class Window:
    """What the network sees of a picture at its own resolution, and the pixels of which that decides.

    Attributes:
        top: Row of the picture that is the window's first; negative where the picture is smaller than the window.
        left: Column, likewise.
        core: On the picture; the cores of all windows are the picture, each of its pixels once.
    """

    top: int
    left: int
    core: Frame

    @property
    def frame(self) -> Frame:
        """The core on the window."""
        core = self.core
        return Frame(core.top - self.top, core.left - self.left, core.height, core.width)


@dataclass(frozen=True, slots=True)
class DataConfig:
    """The preparation of pictures for a backbone: the facts that travel with its weights.

    Attributes:
        image_size: ``(height, width)`` in pixels.
        mean: Per channel, on [0, 1]; as many as `decoding` has channels.
        std: Likewise.
        interpolation: ``"nearest"``, ``"bilinear"``, ``"bicubic"`` or ``"lanczos"``, for enlarging; pictures are
            always made smaller by area averaging.
        crop_pct: Share of the short side that the centre crop of evaluation keeps, in (0, 1].
        crop_mode: ``"center"`` (keep the aspect ratio, crop the centre), ``"squash"`` (the whole picture, stretched),
            ``"pad"`` (the whole picture at its aspect ratio, in the middle of the mean colour) or ``"tile"`` (windows
            at the picture's own resolution, see `transferkit.data.images.windows`). Of a crop alone `crop_pct` says
            anything.
        decoding: What files become.
    """

    image_size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    crop_pct: float = 0.875
    crop_mode: str = "center"
    decoding: Decoding = USUAL

    def __post_init__(self) -> None:
        if self.decoding.channels != len(self.mean):  # there is one number of channels, and this is it
            object.__setattr__(self, "decoding", replace(self.decoding, channels=len(self.mean)))

    @property
    def decode_side(self) -> int | None:
        """Short side, in pixels, that a decoded picture keeps at least: twice the longer side of the input.

        One number for training, evaluation and prediction, so that all three see the same decoded picture. ``None``:
        pictures are decoded whole, for windows of them.
        """
        return None if self.tiled else 2 * max(self.image_size)

    @property
    def tiled(self) -> bool:
        """Whether the network sees windows of a picture."""
        return self.crop_mode == "tile"

    @property
    def channels(self) -> int:
        """Channels of a picture."""
        return len(self.mean)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)`` of what the network takes."""
        return (self.channels, *self.image_size)

    @property
    def shown_shape(self) -> tuple[int, int, int]:
        """``(height, width, channels)`` of a picture before it is normalised."""
        return (*self.image_size, self.channels)

    def of_channels(self, channels: int) -> DataConfig:
        """Return it for so many channels; of fewer than there are each has their average, else they come in turn."""
        own = self.channels
        if channels == own:
            return self

        def of(values: tuple[float, ...]) -> tuple[float, ...]:
            mean = sum(values) / own
            return (mean,) * channels if channels < own else tuple(values[at % own] for at in range(channels))

        return replace(self, mean=of(self.mean), std=of(self.std))

    def in_windows(self) -> DataConfig:
        """Return it for windows of pictures."""
        return replace(self, crop_mode="tile")

    def shown_as(self, other: DataConfig) -> DataConfig:
        """Return it with the decoding and the crop of another one: pictures are of the same kind then."""
        return replace(self, decoding=other.decoding, crop_mode=other.crop_mode, crop_pct=other.crop_pct)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {**values, "decoding": self.decoding.to_dict()}

    def key_values(self) -> dict[str, Any]:
        """Return what the pixels that a network sees depend on, as JSON values; see `Decoding.key_values`."""
        values = self.to_dict()
        decoding = self.decoding.key_values()
        return (
            {**values, "decoding": decoding} if decoding else {key: values[key] for key in values if key != "decoding"}
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataConfig:
        """Rebuild a record from `to_dict`'s values.

        Raises:
            ValueError: They are not those of a record.
        """
        try:
            height, width = map(int, values["image_size"])
            config = cls(
                image_size=(height, width),
                mean=tuple(map(float, values["mean"])),
                std=tuple(map(float, values["std"])),
                interpolation=str(values["interpolation"]),
                crop_pct=float(values["crop_pct"]),
                crop_mode=str(values["crop_mode"]),
                decoding=Decoding.from_dict(values.get("decoding", {})),  # models of before know no choice
            )
        except (AttributeError, KeyError, IndexError, TypeError, OverflowError) as error:
            raise ValueError(f"preprocessing lacks a value, or has one of another type ({error})") from error
        sound = (
            1 <= min(config.image_size) <= max(config.image_size) <= MAX_SIDE
            and all(map(math.isfinite, (*config.mean, *config.std)))
            and 1 <= len(config.mean) == len(config.std) <= MOST_CHANNELS and min(config.std) > 0
            and config.interpolation in ("nearest", "bilinear", "bicubic", "lanczos") and 0 < config.crop_pct <= 1
            and config.crop_mode in CROP_MODES
        )  # fmt: skip
        if not sound:
            raise ValueError(f"preprocessing has a value that cannot be right: {config}")
        return config
