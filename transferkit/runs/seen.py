"""Which pictures a run was made with: by their bytes, and by their pixels where the bytes are other ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from transferkit.core.errors import TransferkitWarning
from transferkit.core.records import USUAL, Decoding
from transferkit.data.images.reading import ReadResult
from transferkit.data.images.sketchbook import Sketchbook
from transferkit.data.index.copies import equal_pictures
from transferkit.data.index.index import ImageIndex
from transferkit.machine.cores import available_cores
from transferkit.runs.files import RunFiles

__all__ = ["run_splits", "warn_of_seen"]


def run_splits(
    run: str | Path,
    pictures: Sequence[ReadResult] = (),
    *,
    decoding: Decoding = USUAL,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, str] | None:
    """Return the split of every picture that a run was made with, by sha256; ``None`` where the run does not say.

    A picture that a run had in several splits counts as one of train.

    Args:
        run: Its directory.
        pictures: Others, by the hashes of their files. Those that have the pixels of one of the run's pictures are in
            the result, too, if that one is where it was or known from before.
        decoding: How they are decoded.
        progress: Called with pictures decoded and pictures to decode, of those that are not known from before.

    Raises:
        CheckpointError: `pictures.csv` is damaged.
        StorageError: It cannot be read.
    """
    files = RunFiles(Path(run))
    if not files.has("pictures.csv"):
        return None
    splits: dict[str, str] = {}
    for row in files.pictures:
        if splits.get(row["sha256"]) != "train":
            splits[row["sha256"]] = row["split"]
    others = [picture for picture in pictures if picture.sha256 is not None and picture.sha256 not in splits]
    if others and splits:
        own = [ReadResult(row["path"], row["sha256"]) for row in files.pictures]
        splits |= _copies(splits, [*own, *others], Sketchbook(decoding), progress)
    return splits


def warn_of_seen(places: Iterable[str | None], index: ImageIndex, decoding: Decoding = USUAL) -> None:
    """Warn where runs that a training starts from were trained on pictures that it will be measured on.

    Args:
        places: Runs, or files in them; what is none, or ``None``, is passed over.
        index: The pictures of the training.
        decoding: How they are decoded.

    Warns:
        TransferkitWarning: With how many they are.
    """
    for place in (Path(name) for name in places if name is not None):
        folders = (place, *place.parents[:2]) if place.exists() else ()
        run = next((folder for folder in folders if (folder / "pictures.csv").is_file()), None)
        if run is None:
            continue
        held = [record for record in index.records if record.split != "train"]
        pictures = [ReadResult(one.path, one.sha256, sketch=index.sketches.get(one.sha256)) for one in held]
        splits = run_splits(run, pictures, decoding=decoding) or {}
        seen = sum(splits.get(record.sha256) == "train" for record in held)
        if seen:
            warnings.warn(
                f"{run} was trained on {seen:,} of these {len(held):,} val and test pictures, so their figures say "
                "little about new ones - give the pictures their splits, or that run's seed as --split-seed",
                TransferkitWarning,
                stacklevel=3,
            )


def _copies(
    splits: dict[str, str],
    pictures: Sequence[ReadResult],
    book: Sketchbook,
    progress: Callable[[int, int], None] | None,
) -> dict[str, str]:
    """Return the splits of those other pictures that have the pixels of a run's own."""
    cores = available_cores()
    same = equal_pictures(book.complete(pictures, workers=cores, progress=progress), book, workers=cores)
    families: dict[str, set[str]] = {}
    for sha256, split in splits.items():
        families.setdefault(same.get(sha256, sha256), set()).add(split)
    copies = {sha256: families.get(name, set()) for sha256, name in same.items() if sha256 not in splits}
    return {sha256: "train" if "train" in met else min(met) for sha256, met in copies.items() if met}
