"""`Predictor`: predictions of a finished run for pictures anywhere, lazily, in order, by the inference engine."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sized
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from transferkit.core.errors import ConfigError, DataError, TrainingError
from transferkit.data.batches.dataset import ImageDataset, Job, Loaded
from transferkit.data.batches.workers import worker_errors
from transferkit.data.images.resize import frame
from transferkit.features.engine.compute import Compute
from transferkit.features.engine.engine import Engine
from transferkit.features.engine.whole import (
    Alone,
    Gathered,
    Output,
    Predictions,
    Rows,
    by_picture,
    outputs_of,
    whole_engine,
)
from transferkit.machine.cores import available_cores
from transferkit.machine.device import choose_accelerator, choose_workers, compute_threads, device_of, tune_process
from transferkit.models.artifact import ModelInfo, load_model
from transferkit.models.module import TransferModule
from transferkit.models.parts import Request
from transferkit.results.predict.abstention import AbstainBy, Abstention, check_unknown
from transferkit.results.predict.record import Prediction
from transferkit.results.predict.views import PredictionViews, Source, load_sources, name_sources, window_outputs

__all__ = ["Predictor", "load"]


class Predictor:
    """A finished run's model, ready for pictures. Not for several threads at once.

    The network runs in the inference engine: batch norm folded into the convolutions, channels-last, compiled where the
    pictures to come pay for it. An engine is kept per batch size.

    Args:
        module: The model.
        info: What `model.json` holds.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        precision: ``"32"``, or ``"bf16"`` for the backbone in autocast; the head is always in fp32.

    Attributes:
        module: As passed, in eval mode on the device.
        info: Likewise.
        device: Likewise.
    """

    def __init__(
        self, module: TransferModule, info: ModelInfo, device: str = "cpu", *, precision: Literal["32", "bf16"] = "32"
    ) -> None:
        self.module = module.eval().to(device).to(memory_format=torch.channels_last)
        self.info = info
        self.device = device
        self.precision: Literal["32", "bf16"] = precision
        self._engines: dict[int, Engine] = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        """In index order."""
        return self.info.class_names

    # ---- logits -------------------------------------------------------------------------------------------------

    def outputs(
        self,
        sources: Iterable[Source],
        *,
        tta: str | int | PredictionViews = "none",
        batch_size: int | None = None,
        workers: int | None = None,
        seed: int = 0,
        features: bool = False,
    ) -> Iterator[Output]:
        """Yield the logits of every picture, in order; lazily, so that there may be any number of them.

        No more of `sources` are taken than a few batches ahead. Files and bytes are decoded as in training, large JPEGs
        at a fraction of their size; Pillow pictures and arrays are taken at full size, Pillow pictures turned upright.
        Of a model that sees pictures in windows there is an output for each of them, see `by_picture`.

        Args:
            sources: Paths, bytes of files, Pillow pictures or uint8 arrays ``(H, W, 3)``, mixed as you like.
            tta: Test-time views: ``"none"``, ``"flip"``, ``"5crop"``, a number of augmented views, or the views.
            batch_size: Views per forward pass; what suits the device when ``None``.
            workers: Decoding processes; what suits the machine when ``None``. 0 decodes on threads of this process.
            seed: Of augmented views.
            features: Whether to give those, too, where the model knows a distance of them.

        Raises:
            ConfigError: An option or a source is not what is expected.
            StorageError: While iterated: a decoding process was lost.
            TrainingError: While iterated: memory ran out.
        """
        views = tta if isinstance(tta, PredictionViews) else PredictionViews.make(self.info.preprocessing, tta, seed)
        kinds = self.module.task.extent.tta
        if views is not tta and kinds is not None and views.kind not in kinds:
            raise ConfigError(
                f"tta is {tta!r}, and what a {self.module.task.name} model says of such views cannot be brought back "
                f"to the picture, expected one of {', '.join(kinds)}"
            )
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}, expected at least 1")
        if workers is not None and workers < 0:
            raise ConfigError(f"workers is {workers}, expected at least 0")
        if not isinstance(sources, Iterable) or isinstance(sources, str | bytes):
            raise ConfigError(f"the pictures are one {type(sources).__name__}, expected a list or iterable of them")
        decoders, threads = choose_workers(workers, "gpu" if self.device == "cuda" else self.device)
        batch = batch_size or Compute(self.device).batch
        if self.info.preprocessing.tiled:
            run = partial(self._rows, batch=batch, left=batch)
            own = threads if decoders and self.device == "cpu" else None
            outputs = window_outputs(sources, views, run, batch_size=batch, workers=decoders, threads=own)
            return self._upright(outputs, views)
        return self._outputs(sources, views, batch, (decoders, threads), features)

    def _outputs(
        self, sources: Iterable[Source], views: PredictionViews, batch: int, cores: tuple[int, int], features: bool
    ) -> Iterator[Output]:
        workers, threads = cores
        total = len(sources) if isinstance(sources, Sized) else None
        done = 0
        batches = load_sources(
            sources,
            views,
            batch_size=max(1, batch // views.count),
            workers=workers,
            threads=available_cores(),
            pin_memory=self.device == "cuda",
        )
        # A GPU computes the next batch while the results of the one before are copied.
        ahead = 1 if self.device == "cuda" else 0
        waiting: deque[tuple[Loaded, Rows]] = deque()
        with worker_errors(), compute_threads(threads if workers and self.device == "cpu" else None):
            for loaded in batches:
                done += len(loaded.names)
                # Of an unknown number as many are taken to come as have come: compiling at worst doubles the time.
                left = (done if total is None else max(0, total - done)) * views.count
                rows = self._rows(loaded.images, batch, left)
                waiting.append((loaded, rows if features else (*rows[:1], *rows[2:])))
                while len(waiting) > ahead:
                    yield from self._upright(outputs_of(*waiting.popleft(), views.count), views)
            while waiting:
                yield from self._upright(outputs_of(*waiting.popleft(), views.count), views)

    def _upright(self, outputs: Iterable[Output], views: PredictionViews) -> Iterator[Output]:
        """Yield outputs as if no view had been a mirror image."""
        extent = self.module.task.extent
        for output in outputs:
            if views.mirrored and output.logits is not None:
                yield replace(
                    output, logits=extent.upright(output.logits, views.mirrored, self.info.preprocessing.image_size)
                )
            else:
                yield output

    def shares(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32] | None:
        """Return how unlike the training pictures each of ``(B, h, w, 3) uint8`` is, ``(B,)`` in [0, 1].

        Args:
            images: As for `logits`.

        Returns:
            Shares of held-out pictures that are nearer; ``None`` where the model does not know.
        """
        rows = self._rows(torch.from_numpy(images), Compute(self.device).batch, 0)
        if self.module.unlike is None or len(rows) < 3:
            return None
        shares: npt.NDArray[np.float32] = self.module.unlike.share(rows[2]).cpu().numpy()
        return shares

    def logits(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return logits ``(B, C)`` of pictures ``(B, h, w, 3) uint8`` that are of the network's size already.

        Args:
            images: As `decode` returns them, stacked.

        Raises:
            TrainingError: Memory ran out.
        """
        rows = self._rows(torch.from_numpy(images), Compute(self.device).batch, 0)
        if not rows:
            return np.zeros((0, len(self.class_names)), dtype=np.float32)
        logits: npt.NDArray[np.float32] = rows[0].cpu().numpy()
        return logits

    def _rows(self, images: Tensor, batch: int, left: int) -> Rows:
        """Return logits ``(R V, C) float32``, features and distances on the device; nothing where is no picture."""
        if not len(images):
            return ()
        engine = self._engine(batch)
        try:
            parts = [engine.rows(images[at : at + batch], left=left) for at in range(0, len(images), batch)]
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"out of memory in batches of {batch} - pass a smaller batch size, such as {max(1, batch // 2)}"
            ) from error
        return tuple(torch.cat(column) for column in zip(*parts, strict=True)) if len(parts) > 1 else parts[0]

    def _engine(self, batch: int) -> Engine:
        if batch not in self._engines:
            engine = whole_engine(self.module, device=self.device, precision=self.precision, batch=batch)
            self._engines[batch] = engine
        return self._engines[batch]

    def decode(self, source: Source) -> npt.NDArray[np.uint8]:
        """Return the evaluation view of a picture, or its middle window, ``(h, w, 3) uint8``, before normalisation.

        Raises:
            ConfigError: `source` is no picture.
            DataError: It cannot be read.
        """
        config = self.info.preprocessing
        (picture,) = name_sources([source], config.decoding)
        loaded = ImageDataset([], PredictionViews.make(config)).batch([Job(picture)])
        if loaded.errors[0] is not None:
            raise DataError(f"cannot read picture {picture.name!r}: {loaded.errors[0].reason} - replace or remove it")
        image: npt.NDArray[np.uint8] = loaded.images[0].numpy()
        return image

    # ---- probabilities ------------------------------------------------------------------------------------------

    def probs(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return what users are told for the outputs of a picture's views; of classification, probabilities ``(C,)``.

        They are calibrated; those of several views are averaged.

        Args:
            logits: ``(V, C)``, of one picture.
        """
        task = self.module.task
        return task.output.merge(task.predictions(torch.from_numpy(logits), self.info.calibration).numpy())

    def predict(
        self,
        images: Iterable[Source] | Source,
        *,
        tta: str | int = "none",
        top_k: int | None = None,
        abstain: float | None = None,
        abstain_by: AbstainBy | None = None,
        coverage: float | None = None,
        unknown: float | None = None,
        batch_size: int | None = None,
        workers: int | None = None,
        seed: int = 0,
    ) -> list[Prediction]:
        """Return one prediction per picture, in order; an unreadable one has `error` set.

        Args:
            images: Pictures as for `outputs`, or one alone.
            tta: Test-time views, whose calibrated probabilities are averaged.
            top_k: Most probable classes in `top`; 3 when ``None``.
            abstain: Rate in (0, 1); gives no label where the model cannot at that rate. ``None``: a label for each.
            abstain_by: With `abstain`. ``"sets"`` (``None``): label where the conformal prediction set of coverage
                `abstain` holds one class.
                ``"thresholds"``: where the probability is one from which on the class was right at the rate `abstain`.
                Both rates are those of held-out pictures without test-time views.
            coverage: Share of true numbers that the intervals of numbers shall hold, in (0, 1); 0.9 when ``None``.
            unknown: In (0, 1): pictures that are further from the training pictures than this share of the held-out
                ones get the label ``"unknown"``. ``None``: none does.
            batch_size: See `outputs`.
            workers: See `outputs`.
            seed: See `outputs`.

        Raises:
            ConfigError: An option or a source is not what is expected, or there are no held-out pictures to abstain by.
        """
        single = isinstance(images, str | os.PathLike | bytes | Image.Image) or (
            isinstance(images, np.ndarray) and images.ndim < 4 and images.dtype.kind not in "OUS"
        )
        sources: Iterable[Source] = [images] if single else images  # type: ignore[list-item, assignment]
        return list(
            self.stream(
                sources,
                tta=tta,
                top_k=top_k,
                abstain=abstain,
                abstain_by=abstain_by,
                coverage=coverage,
                unknown=unknown,
                batch_size=batch_size,
                workers=workers,
                seed=seed,
            )
        )

    def stream(
        self,
        images: Iterable[Source],
        *,
        tta: str | int = "none",
        top_k: int | None = None,
        abstain: float | None = None,
        abstain_by: AbstainBy | None = None,
        coverage: float | None = None,
        unknown: float | None = None,
        batch_size: int | None = None,
        workers: int | None = None,
        seed: int = 0,
        whole: bool = True,
    ) -> Iterator[Prediction]:
        """Yield what `predict` returns, lazily; without `probs` unless `whole`. Raises likewise."""
        if top_k is not None and top_k < 1:
            raise ConfigError(f"top_k is {top_k}, expected at least 1")
        if coverage is not None and not 0 < coverage < 1:
            raise ConfigError(f"coverage is {coverage}, expected a share in (0, 1)")
        if abstain_by is not None and abstain is None:
            raise ConfigError(f"abstain_by {abstain_by!r} says how abstain decides - pass abstain, such as 0.95, too")
        request = Request(top_k=top_k, whole=whole, coverage=coverage, abstention=None if abstain is None else _never)
        problem = self.module.task.output.problem(self.info.target_spec, request)
        if problem is not None:
            raise ConfigError(problem)
        if abstain is not None:
            request = replace(request, abstention=Abstention(self.info, abstain, abstain_by or "sets"))
        if unknown is not None:
            check_unknown(self.module, unknown)
            request = replace(request, unknown=unknown)
        outputs = self.outputs(images, tta=tta, batch_size=batch_size, workers=workers, seed=seed)
        return (self.told(output, placed, request) for output, placed in by_picture(outputs, self.placing))

    def record(self, output: Output, request: Request) -> Prediction:
        """Return what is said of a picture; of a task of your own, what its output part makes of it.

        Args:
            output: Of the network.
            request: What of it is wanted.
        """
        ((output, placed),) = by_picture([output], self.placing)
        return self.told(output, placed, request)

    def placing(self, output: Output) -> Gathered:
        """Return what is made of the outputs of a picture for its record."""
        extent, size, config = self.module.task.extent, output.size, self.info.preprocessing
        if output.window is not None and extent.windows is not None and size is not None:
            return Predictions(self.probs, extent.windows.placed(size))
        place = None if size is None or config.crop_mode == "center" else astuple(frame(size, config))
        return Alone(lambda logits: extent.placed(self.probs(logits), place, size))

    def told(self, output: Output, placed: Any, request: Request) -> Prediction:
        """Return what is said of a picture, by its last output and what `placing` has made of all."""
        part = self.module.task.output
        if output.logits is None:
            unreadable: Prediction = part.unreadable(output.name, str(output.error))
            return unreadable
        prediction: Prediction = part.record(output.name, placed, self.info.target_spec, request)
        if self.module.unlike is None or output.distance is None:
            return prediction
        share = self.module.unlike.nearer(output.distance)
        prediction = replace(prediction, unlike_training=share)
        if request.unknown is not None and share > request.unknown:
            prediction = part.unknown(prediction)
        return prediction


def _never(probs: npt.NDArray[np.float32], order: npt.NDArray[np.int64]) -> tuple[bool, tuple[str, ...]]:
    """Stand for a rule of abstention until it is known that there can be one."""
    return False, ()


def load(
    run: str | Path,
    *,
    accelerator: str = "cpu",
    precision: Literal["32", "bf16"] = "32",
    head: nn.Module | None = None,
    max_pixels: int | None = None,
) -> Predictor:
    """Return the model of a run directory, ready to predict.

    Args:
        run: The run directory.
        accelerator: ``"auto"``, ``"cpu"``, ``"gpu"`` or ``"mps"``.
        precision: ``"32"``, or ``"bf16"``, which may be faster and may flip close calls.
        head: The head, for a model whose head was a module of your own.
        max_pixels: The largest picture to decode, in pixels; that of the model when ``None``.

    Raises:
        CheckpointError: The model is missing or damaged.
        ConfigError: The accelerator is not on this machine.
    """
    chosen = choose_accelerator(accelerator)
    module, info = load_model(run, head=head, max_pixels=max_pixels)
    tune_process(choose_workers(None, chosen)[1])
    return Predictor(module, info, device_of(chosen), precision=precision)
