"""Small pictures inside the page: samples of each class, and mistakes with the evidence for what was predicted."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from transferkit.core.errors import DataError, TransferkitError
from transferkit.core.records import DataConfig
from transferkit.data.images.decode import decode_image
from transferkit.data.images.resize import fit

if TYPE_CHECKING:
    from transferkit.results.predict.predictor import Predictor

__all__ = ["data_uri", "mistake_pictures", "sample_pictures", "thumbnail"]

Picture = npt.NDArray[np.uint8]

SAMPLE_SIDE, MISTAKE_SIDE = 112, 224  # pixels; about twice what the page shows, for dense screens
QUALITY = 80
SAMPLE_CLASSES, SAMPLES = 12, 4
TRIES = 8
"""Pictures of a class that are tried before it is shown with fewer."""


def data_uri(image: Picture) -> str:
    """Return an RGB picture as a JPEG inside a ``data:`` address."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def thumbnail(path: str, side: int = SAMPLE_SIDE) -> str | None:
    """Return the centre square of a picture as a ``data:`` address; ``None`` where it cannot be read.

    Args:
        path: The file.
        side: Of the square, in pixels.
    """
    try:
        pixels = decode_image(path, min_side=2 * side)
    except DataError:
        return None
    return data_uri(fit(pixels, DataConfig(image_size=(side, side), crop_pct=1.0)))


def sample_pictures(pictures: Sequence[Mapping[str, str]], names: Sequence[str]) -> dict[str, Any]:
    """Return a few pictures of each class, the same ones each time, in the order of their content's digest.

    Args:
        pictures: Rows of `pictures.csv`, of which those of ``train`` are shown; of an evaluation its predictions.
        names: Classes in the order wanted; the first dozen is shown.

    Returns:
        ``rows``, a class each with its ``pictures``; ``shown`` and ``wanted``, how many there are and should be.
    """
    rows, shown, wanted = [], 0, 0
    trained = [row for row in pictures if row["split"] == "train"] or list(pictures)
    for name in names[:SAMPLE_CLASSES]:
        inside = sorted(
            (row for row in trained if row["label"] == name), key=lambda row: (row.get("sha256", ""), row["path"])
        )
        made: list[str] = []
        for row in inside[:TRIES]:
            if len(made) < SAMPLES and (shown or not wanted):  # nothing of the first class is left: the folder is gone
                made += [uri for uri in [thumbnail(row["path"])] if uri is not None]
        wanted += min(SAMPLES, len(inside))
        shown += len(made)
        rows.append({"name": name, "pictures": made})
    return {"rows": rows, "shown": shown, "wanted": wanted}


def mistake_pictures(rows: Iterable[Mapping[str, Any]], model_run: Path | None) -> dict[str, Any]:
    """Return wrongly classified pictures as the network saw them, and where it saw what it predicted.

    Args:
        rows: With ``path`` and ``predicted``.
        model_run: Directory of the model; ``None`` where there is none, and then there are no heat maps.

    Returns:
        ``pictures`` and ``heat``, each by path, for those that could be had; ``problem``, why there are no heat maps.
    """
    wanted = [row for row in rows if Path(row["path"]).is_file()]
    if not wanted:
        return {"pictures": {}, "heat": {}, "problem": ""}
    predictor, problem = None, "the model is not in this directory"
    if model_run is not None:
        try:
            from transferkit.results.predict.predictor import load  # only now: a model takes a second

            predictor = load(model_run)
        except TransferkitError as error:
            problem = str(error)
    config = DataConfig(image_size=(MISTAKE_SIDE, MISTAKE_SIDE)) if predictor is None else predictor.info.preprocessing
    seen = _views(wanted, config)
    found: dict[str, Any] = {"pictures": {path: data_uri(large) for path, (_, large) in seen.items()}, "heat": {},
                             "problem": problem if seen and predictor is None else ""}  # fmt: skip
    if predictor is not None and seen:
        targets = {row["path"]: row["predicted"] for row in wanted}
        try:
            found["heat"] = _heat(predictor, seen, targets)
        except TransferkitError as error:  # such as a backbone without a feature map
            found["problem"] = str(error)
    return found


def _views(rows: Iterable[Mapping[str, Any]], config: DataConfig) -> dict[str, tuple[Picture, Picture]]:
    """Return each picture twice: as the network takes it, and the same region large enough to look at."""
    height, width = config.image_size
    times = max(1.0, MISTAKE_SIDE / max(height, width))
    large = dataclasses.replace(config, image_size=(round(height * times), round(width * times)))
    found = {}
    for row in rows:
        try:  # decoded twice: what the network sees depends on how far the decoder may scale down
            small = fit(decode_image(row["path"], min_side=config.decode_side), config)
            found[row["path"]] = (small, fit(decode_image(row["path"], min_side=large.decode_side), large))
        except DataError:
            continue
    return found


def _heat(
    predictor: Predictor, seen: Mapping[str, tuple[Picture, Picture]], targets: Mapping[str, str]
) -> dict[str, str]:
    """Return the evidence for a class laid over each picture."""
    from transferkit.results.explain.gradcam import heatmaps, overlay

    index = {name: at for at, name in enumerate(predictor.class_names)}
    known = [path for path in seen if targets[path] in index]
    if not known:
        return {}
    maps = heatmaps(predictor, np.stack([seen[path][0] for path in known]), [index[targets[path]] for path in known])
    found = {}
    for path, heat in zip(known, maps, strict=True):
        large = seen[path][1]
        size = (large.shape[1], large.shape[0])
        spread = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
        found[path] = data_uri(overlay(large, spread))
    return found
