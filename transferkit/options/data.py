"""The options that verbs on pictures share: where they come from, their splits, what looks at them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from transferkit.core.errors import DataError
from transferkit.core.records import DEEPEST, FITS, MOST_CHANNELS, USUAL, DataConfig, Decoding
from transferkit.core.text import bytes_of, listing, shown
from transferkit.options.fields import BELOW_ONE, REQUIRED, Options, Range, at_least, flag, option
from transferkit.options.sizes import image_size_of, image_size_problem

__all__ = ["AUTO_RANGE", "MANIFEST_EXTENSIONS", "PIXEL_STORE", "SEED", "BackboneOptions", "DataOptions", "disk_bytes",
           "fit_problems", "pixel_store_problems"]  # fmt: skip

SEED = Range("a whole number in [0, 2**32)", lambda value: 0 <= value < 2**32)
BITS = Range(f"bits from 8 to {DEEPEST}", lambda value: 8 <= value <= DEEPEST)

AUTO_RANGE: Final = "auto"
"""Of ``value_range``: the set's own."""
GROUNDS: Final[Mapping[str, str]] = {"white": "#ffffff", "black": "#000000"}
"""Colours that have a name."""
MANIFEST_EXTENSIONS: Final = (".csv", ".parquet")
WEIGHT_WORDS: Final = ("pretrained", "bundled", "random")
"""What ``weights`` may be besides a file or a repository."""


SAMPLE: Final = "sample"
"""What ``data`` is for the bundled sample set."""

PIXEL_STORE: Final = "20GB"
"""The disk that decoded pictures take at most, unless another size is asked for."""


def disk_bytes(pixel_store: str) -> int:
    """Return the bytes that the pixel store may take, 0 for none. Raises `ValueError`."""
    return 0 if pixel_store == "off" else bytes_of(pixel_store)


def pixel_store_problems(pixel_store: str) -> Iterator[str]:
    """Yield what is wrong with the size of the pixel store."""
    try:
        disk_bytes(pixel_store)
    except ValueError as error:
        yield f"--pixel-store is {shown(pixel_store)}: {error}, or off"


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """Where pictures come from and how they are split."""

    data: str = option(
        REQUIRED, "folder/<class>/*, folder/{train,val,test}/<class>/*, images/ beside masks/, a COCO, VOC or YOLO "
        "set, a CSV/Parquet manifest, or 'sample'",
        missing="--data is missing, expected a folder, a manifest or 'sample'",
    )  # fmt: skip
    task: str = option(
        "auto",
        "classification, multilabel, regression, segmentation, detection or a registered task; auto: by the layout",
    )
    targets: str | list[str] | None = option(
        None, "columns of a manifest that hold the answers, separated by commas: 0/1 for labels, numbers to regress"
    )
    path_column: str = option("path", "column of a manifest with the paths")
    label_column: str | None = option(
        None, "column of a manifest with the answer; default: label, labels, target or mask"
    )
    label_separator: str = option("|", "what stands between the labels of a picture in a column of several")
    root: str | None = option(None, "folder that a manifest's paths are relative to; default: the manifest's own")
    mask_values: Literal["classes", "binary", "instances"] = option(
        "classes",
        "what stands in masks: classes; binary: all above 0 is one class; or instances: a number per object",
    )
    palette: str | None = option(
        None, "names of the classes of masks: lines, or a CSV of name,value or name,r,g,b; default: classes.txt or "
        "palette.csv beside the data"
    )  # fmt: skip
    val_split: float = option(
        0.15, "share of a folder without splits that becomes the validation split, [0, 1)", BELOW_ONE
    )
    test_split: float = option(0.15, "share of a folder without splits that becomes the test split, [0, 1)", BELOW_ONE)
    group_by: str | None = option(
        None, "what keeps pictures in one split: folder, or a pattern of the path whose first group is its name"
    )
    group_near: bool = option(
        False, "keep near copies (another size or quality, brighter, cut a little) in one split, too, as equal ones are"
    )
    skip_bad: bool = option(False, "drop unreadable pictures before splitting and list them, instead of stopping")
    allow_empty_classes: bool = option(False, "keep a class without pictures as an output of the model")
    allow_leaks: bool = option(False, "go on although the same picture is in two splits or has two labels")
    max_pixels: int | None = option(
        None, "largest picture that is decoded, in pixels; default: 100 million; of a JPEG that is decoded at a "
        "fraction of its size ten times as many", at_least(1)
    )  # fmt: skip
    ground: str | None = option(None, "colour that shows through transparent pixels: white (default), black or #rrggbb")
    grey_bits: int | None = option(
        None, "bits that the values of 16-bit grey pictures use, 8 to 16, such as 10; default: 16", BITS
    )
    value_range: str | list[float] | None = option(
        None, "LOW:HIGH, what is black and what is white in pixels deeper than 8 bits, in the files' own values; auto: "
        "from the set's smallest to its largest; default: by --grey-bits"
    )  # fmt: skip
    channels: int | None = option(
        None, "of a picture: 1 is grey, 3 RGB, 4 RGBA, others are bands of a TIFF or an array .npy; default: the "
        "backbone's own, mostly 3", at_least(1, most=MOST_CHANNELS)
    )  # fmt: skip
    fit: Literal["crop", "squash", "pad"] | None = option(
        None, "how a picture fills the model's input: crop (its middle), squash (all of it, stretched) or pad (all of "
        "it, on the mean colour); default: the backbone's own, of masks and boxes pad",
    )  # fmt: skip
    rescan: bool = option(
        False, "read and hash every file again, instead of trusting what is known of files whose size, times and "
        "inode are as they were"
    )  # fmt: skip
    seed: int = option(0, "seed of splits, initialisation, sample order and augmentation", SEED)
    split_seed: int | None = option(
        None, "seed of the splits alone: runs of several --seed on one split; default: that of --seed", SEED
    )

    @property
    def infers_task(self) -> bool:
        """Whether the data set shows what its task is: none is named."""
        return self.task == "auto"

    @property
    def target_names(self) -> tuple[str, ...]:
        """The columns of ``targets``."""
        names = self.targets.split(",") if isinstance(self.targets, str) else self.targets or ()
        return tuple(name.strip() for name in names)

    def require_places(self) -> None:
        """Check that the pictures are there. Raises `DataError`."""
        super().require_places()
        if self.data != SAMPLE and not Path(self.data).exists():
            raise DataError(f"--data {self.data} does not exist - give a folder of pictures, a manifest or 'sample'")

    def _conflicts(self) -> Iterator[str]:
        yield from super()._conflicts()
        names = self.target_names
        if self.data and not self.data.lower().endswith(MANIFEST_EXTENSIONS):
            said = [flag(name) for name in ("targets", "path_column", "label_column", "label_separator", "root")
                    if getattr(self, name) != getattr(DataOptions, name)]  # fmt: skip
            if said:
                yield (
                    f"--data {shown(self.data)} is no manifest ({' or '.join(MANIFEST_EXTENSIONS)}), so "
                    f"{listing(said, quote=False)} would mean nothing - leave it out"
                )
        if "" in names or len(set(names)) < len(names):
            yield f"--targets is {self.targets!r}, expected names of columns, each once, such as red,platelets"
        if names and self.label_column is not None:
            yield "--targets and --label-column both say where the answers stand - give one of them"
        if not self.label_separator.strip():
            yield f"--label-separator is {self.label_separator!r}, expected a character such as '|' or ';'"
        try:
            re.compile(self.group_by or "")
        except re.error as error:
            yield f"--group-by {self.group_by!r} is no pattern ({error}) - such as 'patient(\\d+)', or folder"
        if self.ground is not None and Decoding(ground=_colour(self.ground)).problems():
            yield f"--ground is {self.ground!r}, expected {', '.join(GROUNDS)} or #rrggbb, such as #808080"
        yield from _range_problems(self.value_range, self.grey_bits)
        if max(self.val_split, self.test_split) < 1.0 <= self.val_split + self.test_split:
            yield f"--val-split {self.val_split} and --test-split {self.test_split} leave nothing to train on"

    def decoding(self, base: Decoding = USUAL) -> Decoding:
        """Return how pictures are decoded: as these options say, and where they say nothing, as `base` does."""
        values: dict[str, Any] = {name: getattr(self, name) for name in ("grey_bits", "max_pixels", "channels")}
        if self.value_range is not None and self.value_range != AUTO_RANGE:
            values["value_range"] = _ends(self.value_range)
        values["ground"] = None if self.ground is None else _colour(self.ground)
        return replace(base, **{name: value for name, value in values.items() if value is not None})

    def prepared(self, usual: DataConfig) -> DataConfig:
        """Return how pictures are decoded and fill the model's input: as these options say, else as is usual."""
        usual = usual if self.channels is None else usual.of_channels(self.channels)
        config = replace(usual, decoding=self.decoding(usual.decoding))
        return config if self.fit is None else replace(config, crop_mode=FITS[self.fit])

    @property
    def keeps_whole(self) -> bool:
        """Whether all of a picture is asked for, at the edges too: training shows it as evaluation does."""
        return self.fit in ("squash", "pad")


def fit_problems(fit: str | None, *, tile: bool) -> Iterator[str]:
    """Yield what is wrong with how pictures fill the model's input, where that may be windows of them."""
    if fit is not None and tile:
        yield f"--fit {fit} is of whole pictures, and --tile sees windows of them - leave one of them out"


def _ends(value: str | list[float]) -> tuple[float, float]:
    """Return the ends of a range of values. Raises `ValueError`."""
    parts = value.split(":") if isinstance(value, str) else list(value)
    if len(parts) != 2:
        raise ValueError("expected two numbers")
    return float(parts[0]), float(parts[1])


def _range_problems(value: str | list[float] | None, grey_bits: int | None) -> Iterator[str]:
    """Yield what is wrong with a range of values."""
    if value is not None and value != AUTO_RANGE:
        try:
            wrong = Decoding(value_range=_ends(value)).problems()
        except (TypeError, ValueError):
            wrong = [""]
        if wrong:
            yield f"--value-range is {shown(value)}, expected LOW:HIGH, a number and a larger one, or auto"
    if value is not None and grey_bits is not None:
        yield "--value-range and --grey-bits both say what is white - give one of them"


def _colour(text: str) -> str:
    return GROUNDS.get(text, text.lower())


@dataclass(frozen=True, kw_only=True)
class BackboneOptions(DataOptions):
    """The network that looks at the pictures."""

    backbone: str = option("transferkit/mini", "a timm name, torchvision/NAME, transferkit/mini or a registered name")
    weights: str = option("pretrained", "{pretrained|bundled|random|FILE|hf-hub:ID}; never random unless asked for")
    image_size: int | str | list[int] | None = option(
        None, "model's input in pixels: the side of a square, or HEIGHTxWIDTH such as 224x320; default: the backbone's "
        "own"
    )  # fmt: skip

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the model's input; ``None`` for the backbone's own."""
        return image_size_of(self.image_size)

    def _conflicts(self) -> Iterator[str]:
        yield from super()._conflicts()
        yield from image_size_problem(self.image_size)
        if self.weights in WEIGHT_WORDS and Path(self.weights).is_file():
            yield (
                f"--weights {self.weights} has a meaning of its own, and there is a file "
                f"{str(Path(self.weights).absolute())!r}, too - pass ./{self.weights} for the file, or rename it"
            )
