"""The model's side of the server: the bytes of a picture in, an answer out; decoding in threads, the model in one."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import BaseModel, Field

from transferkit.core.errors import TransferkitError
from transferkit.data.batches.augment import eval_transform
from transferkit.data.images.decode import Pixels, UnreadableImage, decode_image
from transferkit.data.images.resize import fit
from transferkit.models.task import Request
from transferkit.results.explain.gradcam import heatmaps, overlay
from transferkit.results.explain.thumbnails import thumbnail
from transferkit.results.predict.abstention import Abstention
from transferkit.results.predict.network import whole_engine
from transferkit.results.predict.predictor import Output, Predictor
from transferkit.results.serve.batching import Batcher

if TYPE_CHECKING:
    from transferkit.results.explain.neighbours import Neighbour, TrainingNeighbours

__all__ = ["Answer", "Answerer", "Guess", "NotCalibrated", "Similar"]

Array = npt.NDArray[np.float32]
Made = TypeVar("Made")

SHOWN_SIDE: Final = 448
"""Long side of the picture under a heat map, in pixels; what the network sees may be far smaller."""
EXPLAINED_AT_ONCE: Final = 4
"""Pictures per backward pass; gradients take several times the memory of a forward pass."""


class Guess(BaseModel):
    """A class and its probability."""

    label: str
    probability: float = Field(description="calibrated where the run is")


class Similar(BaseModel):
    """A training picture that looks alike to the model."""

    label: str
    similarity: float = Field(description="cosine of the features, in [-1, 1]")
    thumbnail: str | None = Field(None, description="JPEG as a data URI; left out where the file is gone")


class Answer(BaseModel):
    """What the model says about one picture."""

    label: str = Field(description="most probable class")
    probability: float = Field(description="of that class")
    top: list[Guess] = Field(description="most probable classes, best first")
    model: str = Field(description="name of the run")
    ms: float = Field(description="time from the whole picture to the answer, in milliseconds")
    set: Annotated[list[str] | None, Field(description="with coverage: the conformal set, most probable first")] = None
    abstained: Annotated[
        bool | None, Field(description="with coverage: the set holds no class or several, so the label is not certain")
    ] = None
    heatmap: Annotated[
        str | None, Field(description="with explain: what the model saw, under a Grad-CAM map; PNG as a data URI")
    ] = None
    neighbours: Annotated[
        list[Similar] | None, Field(description="with explain: the nearest training pictures, nearest first")
    ] = None
    notes: Annotated[list[str] | None, Field(description="what was asked for and could not be given")] = None


class NotCalibrated(Exception):
    """A coverage for a model without held-out probabilities."""


@dataclass(frozen=True, slots=True)
class _View:
    """A decoded picture: as the network sees it; and, to be explained, large enough to be looked at, and its digest."""

    pixels: Pixels
    shown: Pixels | None = None
    sha256: str = ""


class Answerer:
    """Answers for pictures, many callers at a time; one event loop.

    Pictures are decoded and shrunk in `threads` threads, so that what waits is small. The model runs in a single
    thread: predictions in batches, explanations in smaller ones.

    Args:
        predictor: The model.
        name: How answers call it.
        batch_size: Most pictures per forward pass.
        wait_s: How long a batch waits for more pictures, in seconds.
        threads: Decoding threads.
        neighbours: Finds training pictures; ``None`` for none.
        count: How many of them to give.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        name: str,
        batch_size: int,
        wait_s: float,
        threads: int,
        neighbours: TrainingNeighbours | None = None,
        count: int = 0,
    ) -> None:
        self.predictor = predictor
        self.name = name
        self.count = count if neighbours is not None else 0
        self._neighbours = neighbours
        self._transform = eval_transform(predictor.info.preprocessing)
        # As in `Predictor`, but never compiled: that would stop every answer for half a minute, and have a lone picture
        # wait for a whole batch.
        self._engine = whole_engine(
            predictor.module, device=predictor.device, precision=predictor.precision, compiling="off"
        )
        self._decoding = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._model = ThreadPoolExecutor(1, thread_name_prefix="model")
        batcher = partial(Batcher, wait_s=wait_s, executor=self._model)
        self.logits: Batcher[Pixels, Array] = batcher(self._forward, batch_size=batch_size)
        self._heat: Batcher[tuple[Pixels, int], Array] = batcher(self._explain, batch_size=EXPLAINED_AT_ONCE)
        self._near: Batcher[tuple[Pixels, str], list[Neighbour]] = batcher(self._find, batch_size=batch_size)
        self._thumbnail = lru_cache(maxsize=1024)(thumbnail)
        self._abstention = lru_cache(maxsize=64)(partial(Abstention, predictor.info, by="sets"))

    @property
    def calibrated(self) -> bool:
        """Whether conformal sets can be given."""
        return self.predictor.info.calibration.held_out is not None

    async def answer(self, data: bytes, *, top_k: int, coverage: float | None = None, explain: bool = False) -> Answer:
        """Return what the model says about one picture.

        Args:
            data: A picture file.
            top_k: Most probable classes in the answer.
            coverage: Of the conformal set, in (0, 1); ``None`` for no set.
            explain: Whether to add the heat map and the nearest training pictures.

        Raises:
            UnreadableImage: Not a picture that can be decoded.
            NotCalibrated: `coverage` for a model that was not calibrated.
        """
        if coverage is not None and not self.calibrated:
            raise NotCalibrated
        started = time.perf_counter()
        view = await self._in_thread(partial(self._open, data, explain=explain))
        logits = await self.logits.submit(view.pixels)
        names, abstention = self.predictor.class_names, None if coverage is None else self._abstention(coverage)
        prediction = self.predictor.record(Output("", logits), Request(top_k=top_k, abstention=abstention))
        label, probability = prediction.top[0]
        answer = Answer(
            label=label, probability=probability, model=self.name, ms=0.0,
            top=[Guess(label=name, probability=share) for name, share in prediction.top],
        )  # fmt: skip
        if coverage is not None:
            answer.abstained, answer.set = prediction.abstained, list(prediction.classes)
        if explain:
            notes: list[str] = []
            answer.heatmap = await _or_note(
                self._heatmap(view, names.index(label)), notes, "There is no heat map for this model."
            )
            if self.count:
                near = self._similar(view.pixels, view.sha256)
                answer.neighbours = await _or_note(near, notes, "Its training pictures cannot be compared.")
            answer.notes = notes or None
        answer.ms = round((time.perf_counter() - started) * 1e3, 3)
        return answer

    async def close(self) -> None:
        """Answer everything that waits, then end the threads."""
        for batcher in (self.logits, self._heat, self._near):
            await batcher.close()
        self._decoding.shutdown(wait=False, cancel_futures=True)
        self._model.shutdown(wait=True)

    # ---- in the event loop -----------------------------------------------------------------------------------

    async def _in_thread(self, call: Callable[[], Made]) -> Made:
        return await asyncio.get_running_loop().run_in_executor(self._decoding, call)

    async def _heatmap(self, view: _View, target: int) -> str:
        assert view.shown is not None
        heat = await self._heat.submit((view.pixels, target))
        return await self._in_thread(partial(_heat_png, view.shown, heat))

    async def _similar(self, pixels: Pixels, sha256: str) -> list[Similar]:
        nearest = await self._near.submit((pixels, sha256))
        thumbnails = [await self._in_thread(partial(self._thumbnail, near.path)) for near in nearest]
        return [
            Similar(label=near.label, similarity=round(float(near.similarity), 4), thumbnail=thumbnail)
            for near, thumbnail in zip(nearest, thumbnails, strict=True)
        ]

    # ---- in threads ------------------------------------------------------------------------------------------

    def _open(self, data: bytes, *, explain: bool) -> _View:
        config = self.predictor.info.preprocessing
        pixels = self._transform(decode_image(data, min_side=config.decode_side, name="picture"), 0)
        if not explain:
            return _View(pixels)
        scale = max(1.0, SHOWN_SIDE / max(config.image_size))
        height, width = (round(side * scale) for side in config.image_size)
        large = replace(config, image_size=(height, width))
        shown = fit(decode_image(data, min_side=large.decode_side, name="picture"), large)
        return _View(pixels, shown, hashlib.sha256(data).hexdigest())

    def _forward(self, pictures: Sequence[Pixels]) -> list[Array | Exception]:
        logits = self._engine.rows(torch.from_numpy(np.stack(pictures)))[0].cpu().numpy()
        reason = "the model returns NaN or infinity for it"
        return [row[None] if np.isfinite(row).all() else UnreadableImage(reason) for row in logits]

    def _explain(self, items: Sequence[tuple[Pixels, int]]) -> list[Array]:
        return list(heatmaps(self.predictor, np.stack([pixels for pixels, _ in items]), [at for _, at in items]))

    def _find(self, items: Sequence[tuple[Pixels, str]]) -> list[list[Neighbour]]:
        assert self._neighbours is not None
        pictures, hashes = zip(*items, strict=True)
        return self._neighbours.nearest(pictures, self.count, sha256s=hashes)


async def _or_note(work: Awaitable[Made], notes: list[str], note: str) -> Made | None:
    """Await an explanation. An answer is worth having without; why there is none may name paths, so the log has it."""
    log = logging.getLogger("transferkit.serve")
    try:
        return await work
    except TransferkitError as error:  # such as a backbone without a feature map
        log.warning("%s", error)
    except Exception:
        log.exception(note)
    notes.append(note)
    return None


def _heat_png(shown: Pixels, heat: Array) -> str:
    height, width = shown.shape[:2]
    large: Array = np.asarray(cv2.resize(heat, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.float32)
    stream = io.BytesIO()
    Image.fromarray(overlay(shown, large)).save(stream, "PNG", compress_level=4)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
