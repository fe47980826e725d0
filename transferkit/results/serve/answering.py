"""The model's side of the server: the bytes of a picture in, an answer out; decoding in threads, the model in one."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field

from transferkit.core.errors import ConfigError, TransferkitError, did_you_mean
from transferkit.data.augment.transform import eval_transform
from transferkit.data.images.decode import Pixels, UnreadableImage, decode_with_info
from transferkit.features.engine.whole import Output, whole_engine
from transferkit.models.parts import UNKNOWN, Request
from transferkit.results.explain.gradcam import heat_of_windows, heatmaps
from transferkit.results.explain.pictures import enlarged, on_picture, overlay, thumbnail
from transferkit.results.predict.abstention import Abstention, check_unknown
from transferkit.results.predict.files import files_of
from transferkit.results.predict.lines import unlike_values
from transferkit.results.predict.predictor import Predictor
from transferkit.results.report.page import data_address, data_uri
from transferkit.results.serve import windows
from transferkit.results.serve.batching import Batcher

if TYPE_CHECKING:
    from transferkit.results.explain.neighbours import Neighbour, TrainingNeighbours

__all__ = ["Answer", "Answerer", "Guess", "NoRanks", "NoTarget", "NoUnknown", "NotCalibrated", "Similar", "TaskAnswer"]

Array = npt.NDArray[np.float32]
Made = TypeVar("Made")

SHOWN_CLASSES: Final = 5
"""Most probable classes in an answer, unless told otherwise."""
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
    unlike_training: Annotated[
        float | None, Field(description="share of held-out pictures that are nearer to the training pictures")
    ] = None


class Number(BaseModel):
    """A number and its interval."""

    value: float
    low: float | None = Field(None, description="lower end of the interval; left out where there is none")
    high: float | None = None


class RunLengths(BaseModel):
    """A mask as COCO packs it."""

    size: list[int] = Field(description="height and width of the picture")
    counts: str = Field(description="compressed run lengths, column by column, as pycocotools reads them")


class Box(BaseModel):
    """An object that was found."""

    box: list[float] = Field(description="left, top, right and bottom in pixels of the upright picture")
    label: str = Field(description="its class")
    score: float = Field(description="how sure that is, in (0, 1]")
    mask: RunLengths | None = Field(None, description="of models that find outlines")


class TaskAnswer(BaseModel):
    """What a model of another task says about one picture: the values of its records, and these."""

    model_config = ConfigDict(extra="allow")

    model: str = Field(description="name of the run")
    ms: float = Field(description="time from the whole picture to the answer, in milliseconds")
    mask: str | None = Field(
        None,
        description="of masks: PNG of class indices at the picture's size, as a data URI; of outlines: of the numbers "
        "of boxes, 1 for the first",
    )
    boxes: list[Box] | None = Field(None, description="of objects: those told, the most confident first")
    unsure: list[Box] | None = Field(None, description="of objects: those below the model's threshold, down to 0.05")
    shares: dict[str, float] | None = Field(None, description="of masks: share of each class in the pixels")
    labels: list[str] | None = Field(None, description="of labels: those given, most probable first")
    probabilities: list[float] | None = Field(None, description="of labels: of every label, in index order")
    values: dict[str, Number] | None = Field(None, description="of numbers: of every target, in its own unit")
    heatmap: str | None = None
    neighbours: list[Similar] | None = None
    notes: list[str] | None = None
    unlike_training: float | None = Field(
        None, description="share of held-out pictures that are nearer to the training pictures"
    )


class NotCalibrated(Exception):
    """A coverage for a model without held-out probabilities."""


class NoRanks(Exception):
    """A number of most probable classes for a model that does not name one class."""


class NoTarget(Exception):
    """A heat map of what the model does not tell, or a target without one."""


class NoUnknown(Exception):
    """A request for unknown pictures to a model that cannot tell them."""


def _asked(problem: str) -> str:
    """Return what is wrong with a request in the words of its query: flags are parameters there."""
    return problem.replace("--", "")


@dataclass(frozen=True, slots=True)
class _View:
    """A decoded picture: as the network sees it, or all windows of it; larger to be looked at, and its digest.

    `size` is height and width of the picture itself, upright.
    """

    pixels: Pixels
    shown: Pixels
    size: tuple[int, int]
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
        self.output = predictor.module.task.output
        self.name = name
        self._transform = eval_transform(predictor.info.preprocessing)
        # As in `Predictor`, but never compiled: that would stop every answer for half a minute, and have a lone picture
        # wait for a whole batch.
        self._engine = whole_engine(
            predictor.module, device=predictor.device, precision=predictor.precision, compiling="off"
        )
        self._decoding = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._model = ThreadPoolExecutor(1, thread_name_prefix="model")
        batcher = partial(Batcher, wait_s=wait_s, executor=self._model)
        self.logits: Batcher[Pixels, Output] = batcher(self._forward, batch_size=batch_size)
        self._heat: Batcher[tuple[Pixels, str], Array] = batcher(self._explain, batch_size=EXPLAINED_AT_ONCE)
        self._near: Batcher[tuple[Pixels, str], list[Neighbour]] | None = None
        if neighbours is not None:
            self._near = batcher(partial(_nearest, neighbours, count), batch_size=batch_size)
        self._thumbnail = lru_cache(maxsize=1024)(partial(thumbnail, decoding=predictor.info.preprocessing.decoding))
        self._abstention = lru_cache(maxsize=64)(partial(Abstention, predictor.info, by="sets"))

    @property
    def calibrated(self) -> bool:
        """Whether conformal sets, or intervals of numbers, can be given."""
        covers: bool = self.predictor.info.calibration.covers
        return covers

    async def answer(
        self,
        data: bytes,
        *,
        top_k: int | None,
        coverage: float | None = None,
        unknown: float | None = None,
        explain: bool = False,
        target: str | None = None,
    ) -> Answer | TaskAnswer:
        """Return what the model says about one picture.

        Args:
            data: A picture file.
            top_k: Most probable classes in the answer; `SHOWN_CLASSES` when ``None``.
            coverage: Of the conformal set, in (0, 1), and ``None`` for no set; or of the intervals of numbers.
            unknown: Share of held-out pictures beyond which the label is ``"unknown"``, in (0, 1); ``None`` for never.
            explain: Whether to add the heat map and the nearest training pictures.
            target: What the heat map is about, one of the model's names; what the answer names when ``None``.

        Raises:
            UnreadableImage: Not a picture that can be decoded.
            NotCalibrated: `coverage` for a model that was not calibrated, or not on enough pictures.
            NoRanks: `top_k` for a model that does not name one class.
            NoTarget: `target` without `explain`, or not one of the model's names.
            NoUnknown: `unknown` for a model that cannot tell.
        """
        if coverage is not None and self.output.names_one and not self.calibrated:
            raise NotCalibrated
        if unknown is not None:
            try:
                check_unknown(self.predictor.module, unknown)
            except ConfigError as error:
                raise NoUnknown(_asked(str(error))) from error
        if top_k is not None and not self.output.names_one:
            raise NoRanks
        if target is not None:
            self._check_target(target, explain=explain)
        started = time.perf_counter()
        view = await self._in_thread(partial(self._open, data, explain=explain))
        request = dataclasses.replace(self._request(top_k, coverage), unknown=unknown)
        # A mask of a large picture takes a while, and others wait for the event loop.
        record = await self._record(view, request)
        answer = await self._in_thread(partial(self._answer_of, record))
        if coverage is not None and isinstance(answer, Answer):
            answer.abstained, answer.set = record.abstained, list(record.classes)
        if explain:
            notes: list[str] = []
            target = target or self.output.answer(record, self.predictor.info.target_spec)
            answer.heatmap = await _or_note(self._heatmap(view, target), notes, "There is no heat map for this model.")
            if self._near is not None:
                near = self._similar(self._near.submit((view.pixels, view.sha256)))
                answer.neighbours = await _or_note(near, notes, "Its training pictures cannot be compared.")
            answer.notes = notes or None
        answer.ms = round((time.perf_counter() - started) * 1e3, 3)
        return answer

    async def close(self) -> None:
        """Answer everything that waits, then end the threads."""
        await self.logits.close()
        await self._heat.close()
        if self._near is not None:
            await self._near.close()
        self._decoding.shutdown(wait=False, cancel_futures=True)
        self._model.shutdown(wait=True)

    def _check_target(self, target: str, *, explain: bool) -> None:
        if not explain:
            raise NoTarget("target is what a heat map is about - ask for one by explain=true, too")
        names = self.predictor.class_names
        if target not in names:
            near = did_you_mean(target, names)
            problem = f"target is {target[:80]!r}, expected one of the {len(names):,} names of the model"
            raise NoTarget(f"{problem}.{near}" if near else problem)

    def _request(self, top_k: int | None, coverage: float | None) -> Request:
        """Return what is wanted: of classes a coverage is that of a set, by which the model abstains."""
        if self.output.names_one or coverage is None:
            top_k = (top_k or SHOWN_CLASSES) if self.output.names_one else top_k
            return Request(top_k=top_k, abstention=None if coverage is None else self._abstention(coverage))
        request = Request(coverage=coverage)
        if (problem := self.output.problem(self.predictor.info.target_spec, request)) is not None:
            raise NotCalibrated(_asked(problem))
        return request

    def _answer_of(self, record: Any) -> Answer | TaskAnswer:
        """Return a record as an answer, without the time; the file that belongs to it is inside."""
        if not self.output.names_one:
            files, spec = files_of(self.predictor.module), self.predictor.info.target_spec
            if files is not None:
                record = files.written(record, data_address(files.content(record, spec), files.media_type))
            values = {**self.output.values(record), **unlike_values(record)}
            return TaskAnswer.model_validate({**values, "model": self.name, "ms": 0.0})
        label, probability = record.top[0]
        return Answer(
            label=UNKNOWN if record.label == UNKNOWN else label, probability=probability, model=self.name, ms=0.0,
            unlike_training=unlike_values(record).get("unlike_training"),
            top=[Guess(label=name, probability=share) for name, share in record.top],
        )  # fmt: skip

    # ---- in the event loop -----------------------------------------------------------------------------------

    async def _in_thread(self, call: Callable[[], Made]) -> Made:
        return await asyncio.get_running_loop().run_in_executor(self._decoding, call)

    async def _record(self, view: _View, request: Request) -> Any:
        """Return what the model says, of all windows where it sees a picture in windows, a few at a time."""
        if not self.predictor.info.preprocessing.tiled:
            output = dataclasses.replace(await self.logits.submit(view.pixels), size=view.size)
            return await self._in_thread(partial(self.predictor.record, output, request))
        output, placed = await windows.put_together(self.predictor, view.pixels, self.logits.submit, self._in_thread)
        return await self._in_thread(partial(self.predictor.told, output, placed, request))

    async def _heatmap(self, view: _View, target: str) -> str:
        config = self.predictor.info.preprocessing
        if config.tiled:
            explain = partial(heat_of_windows, self.predictor, view.pixels, target)
            heat = await asyncio.get_running_loop().run_in_executor(self._model, explain)
        else:
            heat = on_picture(await self._heat.submit((view.pixels, target)), view.shown, config)
        return await self._in_thread(lambda: data_uri(overlay(view.shown, heat), "png"))

    async def _similar(self, search: Awaitable[list[Neighbour]]) -> list[Similar]:
        nearest = await search
        thumbnails = [await self._in_thread(partial(self._thumbnail, near.path)) for near in nearest]
        return [
            Similar(label=near.label, similarity=round(float(near.similarity), 4), thumbnail=thumbnail)
            for near, thumbnail in zip(nearest, thumbnails, strict=True)
        ]

    # ---- in threads ------------------------------------------------------------------------------------------

    def _open(self, data: bytes, *, explain: bool) -> _View:
        config = self.predictor.info.preprocessing
        decoded, info = decode_with_info(data, min_side=config.decode_side, decoding=config.decoding, name="picture")
        size = info.height, info.width
        pixels = decoded if config.tiled else self._transform(decoded, 0, whole=size)
        if not explain:
            return _View(pixels, pixels, size)
        shown = enlarged(data, config, SHOWN_SIDE, name="picture")
        return _View(pixels, shown, size, hashlib.sha256(data).hexdigest())

    def _forward(self, pictures: Sequence[Pixels]) -> list[Output | Exception]:
        rows = self._engine.rows(torch.from_numpy(np.stack(pictures)))
        logits, distances = rows[0].cpu().numpy(), rows[2][:, 0].tolist() if len(rows) > 2 else [None] * len(pictures)
        reason = "the model returns NaN or infinity for it"
        return [
            Output("", row[None], distance=distance) if np.isfinite(row).all() else UnreadableImage(reason)
            for row, distance in zip(logits, distances, strict=True)
        ]

    def _explain(self, items: Sequence[tuple[Pixels, str]]) -> list[Array]:
        pictures, targets = zip(*items, strict=True)
        return list(heatmaps(self.predictor, np.stack(pictures), targets))


def _nearest(neighbours: TrainingNeighbours, count: int, items: Sequence[tuple[Pixels, str]]) -> list[list[Neighbour]]:
    pictures, hashes = zip(*items, strict=True)
    return neighbours.nearest(pictures, hashes, count)


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
