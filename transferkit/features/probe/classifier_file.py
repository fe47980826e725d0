"""A fitted scikit-learn classifier as a file that runs no code when it is read: skops, nothing trusted."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from transferkit.core.errors import CheckpointError, ExportError
from transferkit.core.files import atomic_write
from transferkit.core.text import first_line

__all__ = ["CLASSIFIER", "FACTS", "keep_classifier", "pack_classifier", "read_classifier"]

CLASSIFIER: Final = "classifier.skops"
"""Its name in the run directory of a probe."""

FACTS: Final = "transferkit.json"
"""The member of the file (a zip archive) that holds its facts: one JSON object of texts. skops does not look at it."""


def keep_classifier(run: Path, estimator: Any, class_names: Sequence[str]) -> str:
    """Write `classifier.skops` into a run directory, where it can be read back without trusting it.

    Args:
        run: The run directory.
        estimator: The fitted pipeline, whose labels are class indices.
        class_names: In index order.

    Returns:
        ``"yes"``, or ``"no: "`` and the reason: skops is not installed, or it would have to trust types that it
        does not, as those of decision trees.

    Raises:
        StorageError: The disk is full or read-only.
    """
    facts = {"classes": json.dumps(list(class_names), ensure_ascii=False)}
    try:
        data = pack_classifier(estimator, facts)
        unpack_classifier(data, CLASSIFIER)
    except (CheckpointError, ExportError) as error:
        return f"no: {error}"
    atomic_write(run / CLASSIFIER, data)
    return "yes"


def pack_classifier(estimator: Any, facts: Mapping[str, str]) -> bytes:
    """Return a fitted estimator as the bytes of a .skops file, with facts beside it.

    Raises:
        ExportError: skops is not installed, or cannot write this estimator.
    """
    skops = _skops()
    try:
        data: bytes = skops.dumps(estimator)
    except Exception as error:  # whatever an estimator of any library holds
        raise ExportError(
            f"skops cannot write {type(estimator).__name__}: {first_line(error)} - use another classifier"
        ) from error
    stream = io.BytesIO(data)
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr(FACTS, json.dumps(dict(facts), ensure_ascii=False))
    return stream.getvalue()


def read_classifier(path: Path) -> tuple[Any, dict[str, str]]:
    """Return a classifier and its facts; no type is trusted, so that no code of the file's choosing runs.

    Raises:
        CheckpointError: The file is missing, damaged, or holds types that would have to be trusted.
        ExportError: skops is not installed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}) - run `transferkit probe` again") from error
    return unpack_classifier(data, str(path))


def unpack_classifier(data: bytes, name: str) -> tuple[Any, dict[str, str]]:
    """Return what `read_classifier` does, from the bytes of a file that messages call `name`. Raises likewise."""
    skops = _skops()
    try:
        untrusted = skops.get_untrusted_types(data=data)
        if untrusted:
            raise CheckpointError(
                f"{name}: holds types that skops does not trust ({', '.join(sorted(untrusted)[:5])}) - "
                "keep such a classifier in a pipeline of your own, behind transferkit.FeatureExtractor"
            )
        estimator = skops.loads(data, trusted=[])
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            facts = json.loads(archive.read(FACTS)) if FACTS in archive.namelist() else {}
        if not isinstance(facts, dict):
            raise ValueError(f"{FACTS} is no mapping")
    except CheckpointError:
        raise
    except Exception as error:  # arbitrary bytes go through a parser here
        raise CheckpointError(
            f"{name}: is no classifier that can be read ({first_line(error)}) - copy it again"
        ) from error
    return estimator, {str(key): str(value) for key, value in facts.items()}


def _skops() -> Any:
    try:
        import skops.io  # type: ignore[import-untyped]
    except ImportError as error:
        raise ExportError(
            "skops is not installed, but .skops files need it - pip install 'transferkit[sklearn]'"
        ) from error
    return skops.io
