"""Pictures to look at: as the network sees them, large enough, under a heat map, inside an HTML page."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from matplotlib import colormaps

from transferkit.core.errors import DataError, TransferkitError
from transferkit.core.records import USUAL, DataConfig, Decoding
from transferkit.data.images.channels import Pixels, as_rgb
from transferkit.data.images.decode import decode_image
from transferkit.data.images.resize import INTERPOLATIONS, fit, frame, resize
from transferkit.results.report.page import data_uri

if TYPE_CHECKING:
    from transferkit.results.predict.predictor import Predictor

__all__ = ["COLOURS", "enlarged", "mistake_pictures", "on_picture", "overlay", "sample_pictures", "thumbnail"]

Heat: TypeAlias = npt.NDArray[np.float32]

COLOURS = "inferno"
"""Matplotlib's name of the colours: evenly growing brightness, told apart by colour-blind eyes and in grey print."""
STRENGTH = 0.6
"""Share of the colour where there is most evidence."""

SAMPLE_SIDE, MISTAKE_SIDE = 112, 224  # pixels; about twice what the page shows, for dense screens
SAMPLE_CLASSES, SAMPLES = 12, 4
TRIES = 8
"""Pictures of a class that are tried before it is shown with fewer."""


def enlarged(source: str | bytes, config: DataConfig, side: int, *, name: str | None = None) -> Pixels:
    """Return what the network sees of a picture, with a longer side of `side` pixels at least.

    It is neither stretched nor padded. Where the network sees windows, that is the picture, with a longer side of just
    so many.

    Args:
        source: A path, or the bytes of a file.
        config: How the network has its pictures prepared.
        side: In pixels.
        name: What errors call the picture.

    Raises:
        DataError: It cannot be read.
    """
    if config.crop_mode != "center":
        side = side if config.tiled else max(side, *config.image_size)
        pixels = decode_image(source, min_side=2 * side, decoding=config.decoding, name=name)
        scale = side / max(pixels.shape[:2])
        shown = max(1, round(pixels.shape[0] * scale)), max(1, round(pixels.shape[1] * scale))
        return as_rgb(resize(pixels, shown, INTERPOLATIONS[config.interpolation]))
    times = max(1.0, side / max(config.image_size))
    height, width = (round(length * times) for length in config.image_size)
    large = dataclasses.replace(config, image_size=(height, width))
    return as_rgb(fit(decode_image(source, min_side=large.decode_side, decoding=large.decoding, name=name), large))


def on_picture(heat: Heat, shown: Pixels, config: DataConfig) -> Heat:
    """Return the part of a heat map that lies on a picture as `enlarged` shows it: padding is none of it.

    Args:
        heat: ``(h, w)`` of the network's input, or of the whole picture where it sees windows.
        shown: The picture.
        config: How it was prepared.
    """
    return heat[frame((shown.shape[0], shown.shape[1]), config).slices] if config.crop_mode == "pad" else heat


def overlay(image: Pixels, heat: npt.NDArray[np.floating]) -> Pixels:
    """Return a picture with a heat map laid over it, ``(h, w, 3) uint8``.

    The picture is shown in grey, so that every colour is one of the map's; the more evidence, the denser.

    Args:
        image: ``(h, w, 3) uint8``.
        heat: In [0, 1]; scaled to the picture.
    """
    height, width = image.shape[:2]
    spread = np.clip(cv2.resize(heat.astype(np.float32), (width, height)), 0.0, 1.0).astype(np.float64)
    grey = image @ np.array([0.299, 0.587, 0.114])  # luma of ITU-R BT.601
    share = STRENGTH * spread[..., None]
    mixed = (1.0 - share) * grey[..., None] + share * (colormaps[COLOURS](spread)[..., :3] * 255.0)
    laid: Pixels = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
    return laid


def thumbnail(path: str, decoding: Decoding = USUAL) -> str | None:
    """Return the centre square of a picture as a ``data:`` address; ``None`` where it cannot be read."""
    square = DataConfig(image_size=(SAMPLE_SIDE, SAMPLE_SIDE), crop_pct=1.0).of_channels(decoding.channels)
    try:
        return data_uri(fit(decode_image(path, min_side=2 * SAMPLE_SIDE, decoding=decoding), square))
    except DataError:
        return None


def sample_pictures(
    pictures: Sequence[Mapping[str, str]], names: Sequence[str], decoding: Decoding = USUAL
) -> dict[str, Any]:
    """Return a few pictures of each class, the same ones each time, in the order of their content's digest.

    Args:
        pictures: Rows of `pictures.csv`, of which those of ``train`` are shown; of an evaluation its predictions.
        names: Classes in order; the first dozen is shown.
        decoding: As the network has them decoded.

    Returns:
        ``rows``, a class each with its ``pictures``; ``shown`` and ``expected``, how many there are and should be.
    """
    rows, shown, expected = [], 0, 0
    trained = [row for row in pictures if row["split"] == "train"] or list(pictures)
    for name in names[:SAMPLE_CLASSES]:
        inside = sorted(
            (row for row in trained if row["label"] == name), key=lambda row: (row.get("sha256", ""), row["path"])
        )
        made: list[str] = []
        for row in inside[:TRIES]:
            if len(made) < SAMPLES and (
                shown or not expected
            ):  # nothing of the first class is left: the folder is gone
                made += [uri for uri in [thumbnail(row["path"], decoding)] if uri is not None]
        expected += min(SAMPLES, len(inside))
        shown += len(made)
        rows.append({"name": name, "pictures": made})
    return {"rows": rows, "shown": shown, "expected": expected}


def mistake_pictures(rows: Sequence[Mapping[str, Any]], model_run: Path | None) -> dict[str, Any]:
    """Return wrongly predicted pictures as the network saw them, and where it saw what it predicted.

    Args:
        rows: With ``path`` and ``predicted``.
        model_run: Directory of the model; ``None`` where there is none, and then there are no heat maps.

    Returns:
        ``pictures`` and ``heat``, each by path, for those that could be had; ``problem``, why there are no heat maps.
    """
    targets = {row["path"]: row["predicted"] for row in rows if Path(row["path"]).is_file()}
    if not targets:
        return {"pictures": {}, "heat": {}, "problem": ""}
    predictor, problem = None, "the model is not in this directory"
    if model_run is not None:
        try:
            from transferkit.results.predict.predictor import load  # only now: a model takes a second

            predictor = load(model_run)
        except TransferkitError as error:
            problem = str(error)
    config = DataConfig(image_size=(MISTAKE_SIDE, MISTAKE_SIDE)) if predictor is None else predictor.info.preprocessing
    large = {}
    for path in targets:
        try:
            large[path] = enlarged(path, config, MISTAKE_SIDE)
        except DataError:
            continue
    heat = {}
    if predictor is not None and large:
        problem = ""
        try:
            heat = _heat(predictor, large, targets)
        except TransferkitError as error:  # such as a backbone without a feature map
            problem = str(error)
    uris = {path: data_uri(image) for path, image in large.items()}
    return {"pictures": uris, "heat": heat, "problem": problem if large else ""}


def _heat(predictor: Predictor, large: Mapping[str, Pixels], targets: Mapping[str, str]) -> dict[str, str]:
    """Return the evidence for what was predicted laid over each picture."""
    from transferkit.results.explain.gradcam import heatmaps

    known = [path for path in large if targets[path] in predictor.class_names]
    if not known:
        return {}
    # Decoded once more: what the network sees depends on how far the decoder may scale down.
    views = np.stack([predictor.decode(path) for path in known])
    heats = heatmaps(predictor, views, [targets[path] for path in known])
    config = predictor.info.preprocessing
    return {path: data_uri(overlay(large[path], on_picture(heat, large[path], config)))
            for path, heat in zip(known, heats, strict=True)}  # fmt: skip
