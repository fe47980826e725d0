"""The bundled sample set: six classes of drawn, photo-like surfaces, made on first use; nothing is downloaded."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from transferkit.core.errors import ConfigError, DataError, StorageError, gather
from transferkit.core.files import storage_errors
from transferkit.data.surfaces import SURFACES, draw_picture

__all__ = ["SAMPLE", "SAMPLE_CLASSES", "draw_sample", "sample_folder"]

SAMPLE = "sample"
"""The value of ``data`` that stands for the bundled sample set."""

SAMPLE_CLASSES: tuple[str, ...] = tuple(SURFACES)

Progress = Callable[[int, int], None]

_VERSION = 1  # raise it when a drawing changes: folders drawn before must not pass for the new set
_PER_CLASS = 60


def draw_sample(
    directory: str | os.PathLike[str],
    *,
    per_class: int = _PER_CLASS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Draw the sample set as ``directory/<class>/NNN.jpg``. About 10 s for the 360 pictures of the default.

    The folder appears whole or not at all. On one machine the same arguments give the same bytes, as long as numpy and
    Pillow stay the same; more pictures of a class never change the first ones.

    Args:
        directory: A new or empty folder. Missing parents are made.
        per_class: Pictures of each class, at least 1.
        seed: At least 0.
        progress: Called with pictures drawn and pictures in all.

    Returns:
        The folder.

    Raises:
        ConfigError: `per_class` or `seed` is out of range.
        DataError: `directory` is a file, or a folder with something in it.
        StorageError: The disk is full, read-only or failing. Nothing is left behind.
    """
    problems = []
    if per_class < 1:
        problems.append(f"per_class is {per_class}, expected at least 1")
    if seed < 0:
        problems.append(f"seed is {seed}, expected at least 0")
    if problems:
        raise ConfigError(gather(problems))
    target = Path(directory)
    with storage_errors("draw the sample set in", target):
        _check_free(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        try:
            drawing = work / "drawing"  # inside, because mkdtemp makes a private folder and this one may be shared
            _draw(drawing, per_class, seed, progress)
            with contextlib.suppress(FileNotFoundError):
                target.rmdir()  # an empty folder; fails, and keeps everything, if another process filled it meanwhile
            drawing.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target


def sample_folder(progress: Progress | None = None) -> Path:
    """Return the sample set in the user's cache, drawn on first use.

    It lies in ``$XDG_CACHE_HOME/transferkit/`` or, without that variable, in ``~/.cache/transferkit/``. Two processes
    may ask at once.

    Args:
        progress: Called with pictures drawn and pictures in all, when they have to be drawn.

    Raises:
        DataError: The folder is there but pictures are missing.
        StorageError: The cache cannot be written.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has a relative path ignored.
    cache = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    folder = cache / "transferkit" / f"sample-v{_VERSION}"
    if not folder.is_dir():
        try:
            draw_sample(folder, progress=progress)
        except (DataError, StorageError):
            if not folder.is_dir():  # else another process was faster, and its folder is as good
                raise
    with storage_errors("read the sample set in", folder):
        missing = sum(not path.is_file() for path in _paths(folder, _PER_CLASS))
    if missing:
        raise DataError(
            f"the sample set is damaged: {missing} of {len(SAMPLE_CLASSES) * _PER_CLASS} pictures are missing in "
            f"{str(folder)!r} - delete that folder and run again, it is drawn anew"
        )
    return folder


def _check_free(target: Path) -> None:
    """Refuse a target that would be overwritten."""
    if target.is_dir():
        if any(target.iterdir()):
            raise DataError(f"the folder {str(target)!r} is not empty, expected a new or empty one - name another")
    elif target.exists():
        raise DataError(f"{str(target)!r} is a file, expected a new or empty folder - name another")


def _draw(folder: Path, per_class: int, seed: int, progress: Progress | None) -> None:
    paths = _paths(folder, per_class)
    for number, path in enumerate(paths):
        label, picture = divmod(number, per_class)
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([seed, label, picture])
        quality = int(rng.integers(70, 93))
        draw_picture(SAMPLE_CLASSES[label], rng).save(path, quality=quality)
        if progress is not None:
            progress(number + 1, len(paths))


def _paths(folder: Path, per_class: int) -> list[Path]:
    """Every picture's place, class by class; three digits or as many as the largest number takes."""
    digits = max(3, len(str(per_class - 1)))
    return [folder / name / f"{number:0{digits}}.jpg" for name in SAMPLE_CLASSES for number in range(per_class)]
