"""The values of a set's pictures: the range of deep ones, and the mean and deviation of each channel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from transferkit.core.errors import DataError
from transferkit.core.records import DataConfig, Decoding
from transferkit.data.images.arrays import is_array, read_array
from transferkit.data.images.decode import UnreadableImage, decode_image, kind_of, read_bytes, reading_errors
from transferkit.data.images.readers import open_picture, quiet_pillow
from transferkit.data.images.reading import in_order
from transferkit.data.index.targets import TargetReader
from transferkit.data.scan.scan import scan_data
from transferkit.machine.cores import available_cores
from transferkit.options.data import AUTO_RANGE, DataOptions

__all__ = ["MOST", "measured", "ranged"]

MOST: Final = 500
"""Training pictures that channels are measured on: those whose digests come first."""

_LEAST: Final = 1 / 255
"""Deviation of a channel that has one: one that is the same everywhere, as an alpha often is, is left as it is."""

_ANY: Final = Decoding(channels=1, value_range=(0.0, 1.0))
"""By which deep colour is read as an array, too."""

_Options = TypeVar("_Options", bound=DataOptions)


def measured(config: DataConfig, pictures: Mapping[str, str]) -> DataConfig:
    """Return a data config with the mean and deviation of each channel over training pictures.

    Args:
        config: How they are decoded.
        pictures: Files of training, by the digest of their content; up to `MOST` of them count, each the same. Those
            that cannot be read do not.
    """

    def moments(path: str) -> npt.NDArray[np.float64] | None:
        try:
            pixels = decode_image(path, min_side=config.decode_side, decoding=config.decoding)
        except UnreadableImage:  # which the index says in its own words
            return None
        levels = pixels.reshape(-1, pixels.shape[2])[:: max(1, pixels.shape[0] * pixels.shape[1] >> 16)] / 255
        return np.stack([levels.mean(axis=0), np.square(levels).mean(axis=0)])

    chosen = [pictures[sha256] for sha256 in sorted(pictures)[:MOST]]
    rows = [row for row in in_order(moments, chosen, available_cores()) if row is not None]
    if not rows:
        return config
    mean, square = np.mean(rows, axis=0)
    deviation = np.sqrt(np.maximum(square - mean**2, 0.0))
    std = np.where(deviation < _LEAST, 1.0, deviation)
    return replace(config, mean=tuple(map(float, mean.round(6))), std=tuple(map(float, std.round(6))))


def ranged(config: _Options, reader: TargetReader) -> _Options:
    """Return the options with the set's own range of deep values in place of ``auto``: its smallest to its largest.

    Pictures that a folder or a manifest has in ``val`` or ``test`` do not count.

    Raises:
        DataError: No picture is deeper than 8 bits, or all of them are of one value.
    """
    if config.value_range != AUTO_RANGE:
        return config
    scan = scan_data(config.data, reader.columns_of(config))
    paths = [file.path for file in scan.files if file.split in (None, "train")]
    ends = [pair for pair in in_order(_ends, paths, available_cores()) if pair is not None]
    if not ends:
        raise DataError(f"--value-range auto, but no picture of {config.data} is deeper than 8 bits - leave it out")
    low, high = min(pair[0] for pair in ends), max(pair[1] for pair in ends)
    if low == high:
        raise DataError(f"--value-range auto, but all deep values of {config.data} are {low:g} - name a range")
    return replace(config, value_range=f"{low:.9g}:{high:.9g}")


def _ends(path: str) -> tuple[float, float] | None:
    """Return the smallest and the largest value of a picture; ``None`` for one of 8 bits, or none at all."""
    try:
        data = read_bytes(path)
        with reading_errors(path), quiet_pillow():
            values = _values(data)
    except UnreadableImage:  # which the index says in its own words
        return None
    if values is None or values.dtype.itemsize < 2 or values.dtype.kind not in "uif" or not np.isfinite(values).any():
        return None
    return float(np.nanmin(values)), float(np.nanmax(values))


def _values(data: bytes) -> npt.NDArray[Any] | None:
    """Return the values of a file as they are stored, where they may be deep."""
    kind = kind_of(data)
    if is_array(data, kind, _ANY):
        return read_array(data, kind)
    if kind not in ("PNG", "TIFF"):
        return None
    image: Image.Image = open_picture(data, kind, _ANY.max_pixels)
    return np.asarray(image) if image.mode in ("I", "F") or image.mode.startswith("I;16") else None
