"""X and y of scikit-learn: paths, Pillow pictures and arrays become pictures, labels become class indices."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.sparse import issparse
from sklearn.exceptions import NotFittedError
from sklearn.utils import assert_all_finite
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from transferkit.core.errors import ConfigError, DataError
from transferkit.core.records import USUAL, Decoding
from transferkit.data.batches.dataset import Picture
from transferkit.data.images.decode import UnreadableImage, image_pixels, pixels_digest
from transferkit.data.images.known_files import hash_files

__all__ = [
    "InputError",
    "Item",
    "NotFitted",
    "encode_indicators",
    "encode_labels",
    "list_items",
    "name_unreadable",
    "read_items",
    "weigh_labels",
]

Item: TypeAlias = str | Image.Image | npt.NDArray[np.uint8]
"""A path, a Pillow picture, or pixels ``(H, W, 3)`` or ``(H, W)`` uint8."""

EXPECTED = "a path, a Pillow image, or a uint8 array of shape (H, W, 3) or (H, W)"
SHOWN = 5
"""Problems of items that one message names."""


class InputError(DataError, ValueError):
    """X or y is not what an estimator takes. A ``ValueError`` too, which is what scikit-learn's callers catch."""


class NotFitted(ConfigError, NotFittedError):  # type: ignore[misc]  # an untyped base
    """An estimator is used before `fit`. scikit-learn's ``NotFittedError`` too."""


def list_items(X: Any) -> list[Item]:
    """Return the pictures of X, one by one; their kinds and shapes are checked, nothing is read.

    Args:
        X: A sequence or one-dimensional array (a pandas Series too) of paths, Pillow pictures and uint8 arrays, mixed
            as you like; or one uint8 array ``(N, H, W, 3)``.

    Raises:
        InputError: X is something else; the message names the positions.
    """
    if isinstance(X, str | bytes | os.PathLike | Image.Image):
        raise InputError(f"X is one {type(X).__name__}, expected a list of pictures - pass [X]")
    values: Sequence[Any] = X if isinstance(X, Sequence) else _unpacked(X)
    if not len(values):
        raise InputError("X holds no pictures (0 samples), expected at least one")
    items: list[Item] = []
    problems = []
    for position, value in enumerate(values):
        item = _item(value)
        if item is None:
            problems.append(f"X[{position}] is {_describe(value)}")
        else:
            items.append(item)
    if problems:
        more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise InputError(f"{', '.join(problems[:SHOWN])}{more}; expected {EXPECTED}")
    return items


def read_items(items: Sequence[Item], decoding: Decoding = USUAL, *, threads: int = 1) -> list[Picture | str]:
    """Return each item as a picture known by its content, or why it cannot be read.

    A file is hashed, not decoded: it is known by its bytes, as everywhere in the package, and not read where it is as
    it was when it was last read; one that changed unseen is found when it is decoded. A Pillow picture or an array
    is known by its upright RGB pixels, whatever file they came from.

    Args:
        items: From `list_items`.
        decoding: For Pillow pictures, which are decoded here.
        threads: Files hashed side by side.
    """
    paths = [item for item in items if isinstance(item, str)]
    hashes = iter(hash_files(paths, workers=threads))
    read: list[Picture | str] = []
    for position, item in enumerate(items):
        name = f"X[{position}]"
        if isinstance(item, str):
            result = next(hashes)
            read.append(str(result.error) if result.sha256 is None else Picture(item, result.sha256))
            continue
        try:
            pixels = image_pixels(item, decoding=decoding, name=name) if isinstance(item, Image.Image) else _rgb(item)
        except UnreadableImage as error:
            read.append(error.reason)
        else:
            read.append(Picture(name, pixels_digest(pixels), pixels))
    return read


def name_unreadable(items: Sequence[Item], failures: Mapping[int, str]) -> str:
    """Return a sentence that names every picture that cannot be read.

    Args:
        items: All of them.
        failures: Reason by position.
    """
    lines = []
    for position, reason in failures.items():
        item = items[position]
        lines.append(f"{item!r} (X[{position}]): {reason}" if isinstance(item, str) else f"X[{position}]: {reason}")
    return f"{len(failures)} of {len(items)} pictures cannot be read: {'; '.join(lines)}"


def encode_labels(y: Any, count: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Return the classes ``(C,)``, sorted, and the class indices ``(N,)``.

    Args:
        y: ``(N,)`` labels: text, whole numbers or booleans.
        count: N, the pictures there are.

    Raises:
        InputError: y is missing, of another length, or not labels of classes.
    """
    if y is None:
        raise InputError("this classifier requires y to be passed, but the target y is None - pass a label per picture")
    try:
        labels = column_or_1d(y, warn=True)
        assert_all_finite(labels, input_name="y")
        check_classification_targets(labels)
        classes, targets = np.unique(labels, return_inverse=True)
    except (ValueError, TypeError) as error:  # TypeError: text and numbers in one object array
        raise InputError(
            f"{error} - expected y of shape (N,): text, whole numbers or booleans, no gaps; for amounts put "
            "FeatureExtractor before a regressor of scikit-learn, such as RidgeCV"
        ) from error
    if len(targets) != count:
        raise InputError(f"y has {len(targets)} labels for {count} pictures, expected one for each")
    if len(classes) < 2:
        raise InputError(f"y has 1 class ({classes[0]!r}), expected at least 2")
    return np.asarray(classes), targets.astype(np.int64)


def encode_indicators(y: Any, count: int) -> npt.NDArray[np.float32] | None:
    """Return ones and zeros ``(N, C)`` of several labels per picture; ``None`` where y has no two columns.

    Args:
        y: ``(N, C)`` of 0 and 1 (or booleans): an array, a sparse matrix or a data frame.
        count: N, the pictures there are.

    Raises:
        InputError: y is of another length, holds other numbers, or no label that some pictures have and others lack.
    """
    table = y.toarray() if issparse(y) else y if isinstance(y, str | bytes) else np.asarray(y)
    if not isinstance(table, np.ndarray) or table.ndim != 2 or table.shape[1] < 2:
        return None
    try:
        values = table.astype(np.float32)
    except (ValueError, TypeError) as error:
        raise InputError(f"y has {table.shape[1]} columns ({error}) - expected 0 or 1 for each label") from error
    if not np.isin(values, (0, 1)).all():
        raise InputError(f"y has {table.shape[1]} columns of other numbers, expected 0 or 1 for each label")
    if len(values) != count:
        raise InputError(f"y has {len(values)} rows for {count} pictures, expected one for each")
    if not (values.any(axis=0) & ~values.all(axis=0)).any():
        raise InputError("y has no label that some pictures have and others lack, expected at least one")
    return np.asarray(values)


def weigh_labels(class_weight: Mapping[Any, float], labels: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the weight of each row ``(N,)``: that of its label, 1 where the label is not named.

    Raises:
        ConfigError: A label is named that is not there, while others are left out.
    """
    try:
        weights = compute_sample_weight(dict(class_weight), labels)
    except ValueError as error:
        raise ConfigError(f"class_weight does not fit the labels of y: {error}") from error
    return np.asarray(weights, dtype=np.float64)


def _unpacked(X: Any) -> Sequence[Any]:
    """The pictures of an array, which holds them as objects or text, or is a batch of pixels."""
    array = np.asarray(X)
    if array.ndim == 1:
        values: list[Any] = array.tolist()
        return values
    if array.ndim == 4 and array.dtype == np.uint8 and array.shape[3] == 3:
        return list(array)
    hint = ""
    if array.ndim in (2, 3) and array.dtype == np.uint8:
        hint = " - pass [X] for one picture, list(X) for a batch of grey ones"
    elif array.ndim == 2 and array.dtype.kind in "OUT":
        hint = " - of a table, pass the column with the paths"
    kind = _describe(array if array.ndim else X)
    raise InputError(f"X is {kind}; expected a list of pictures, or one uint8 array of shape (N, H, W, 3){hint}")


def _item(value: Any) -> Item | None:
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, np.ndarray):
        fits = value.ndim == 2 or (value.ndim == 3 and value.shape[2] == 3)
        return value if fits and value.size and value.dtype == np.uint8 else None
    if isinstance(value, str | os.PathLike):
        path = os.fspath(value)
        return str(path) if isinstance(path, str) and path else None
    return None


def _rgb(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Three channels, contiguous; the caller's own array where it is that already."""
    return np.ascontiguousarray(np.repeat(pixels[:, :, None], 3, axis=2) if pixels.ndim == 2 else pixels)


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} of shape {value.shape}"
    text = repr(value)
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({type(value).__name__})"
