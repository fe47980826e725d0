"""Predictions of a finished run for pictures anywhere."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from transferkit.data.datamodule import normalise
from transferkit.data.decode import decode_image
from transferkit.data.transforms import eval_transform
from transferkit.errors import DataError
from transferkit.features.machine import choose_accelerator, device_of
from transferkit.models.artifact import ModelInfo, load_model
from transferkit.models.module import TransferModule
from transferkit.training.parallel import gather, rank, world

__all__ = ["Prediction", "Predictor", "load", "predict_together", "predictions_csv"]

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


@dataclass(frozen=True)
class Prediction:
    """What the model says about one picture.

    Attributes:
        path: The file.
        label: Most probable class; ``None`` when the file is unreadable.
        probability: Of that class.
        probs: Of every class, in index order.
        error: Why there is no prediction; ``None`` when there is one.
    """

    path: str
    label: str | None = None
    probability: float | None = None
    probs: tuple[float, ...] = ()
    error: str | None = None


class Predictor:
    """A finished run's model, ready for pictures.

    Args:
        module: The model, in eval mode.
        info: What `model.json` holds.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
    """

    def __init__(self, module: TransferModule, info: ModelInfo, device: str = "cpu") -> None:
        self.module = module.eval().to(device).to(memory_format=torch.channels_last)
        self.info = info
        self.device = device
        self.transform = eval_transform(info.preprocessing)

    @property
    def class_names(self) -> tuple[str, ...]:
        """In index order."""
        return self.info.class_names

    def predict(self, paths: Sequence[str | Path], *, batch_size: int = 32) -> list[Prediction]:
        """Return one prediction per picture, in the order given; an unreadable one has `error` set.

        Args:
            paths: Picture files.
            batch_size: Pictures per forward pass.
        """
        return [prediction for start in range(0, len(paths), batch_size)
                for prediction in self._batch([str(path) for path in paths[start : start + batch_size]])]  # fmt: skip

    def _batch(self, paths: Sequence[str]) -> Iterator[Prediction]:
        errors: dict[str, str] = {}
        images = []
        for path in paths:
            try:
                pixels = decode_image(path, min_side=self.info.preprocessing.decode_side)
                images.append(torch.from_numpy(self.transform(pixels, 0)))
            except DataError as error:
                errors[path] = str(error)
        probs: Iterator[torch.Tensor] = iter(())
        if images:
            with torch.inference_mode():
                batch = normalise(torch.stack(images).to(self.device), self.info.preprocessing)
                probs = iter((self.module(batch).float() / self.info.temperature).softmax(dim=1).cpu())
        for path in paths:
            if path in errors:
                yield Prediction(path, error=errors[path])
                continue
            row = next(probs)
            index = int(row.argmax())
            yield Prediction(path, self.class_names[index], float(row[index]), tuple(row.tolist()))


def load(run: str | Path, *, accelerator: str = "cpu") -> Predictor:
    """Return the model of a run directory, ready to predict.

    Args:
        run: The run directory.
        accelerator: ``"auto"``, ``"cpu"``, ``"gpu"`` or ``"mps"``.

    Raises:
        CheckpointError: The model is missing or damaged.
        ConfigError: The accelerator is not on this machine.
    """
    module, info = load_model(run)
    return Predictor(module, info, device_of(choose_accelerator(accelerator)))


def find_pictures(paths: Sequence[str]) -> list[str]:
    """Return the files that `paths` stand for: files as they are, folders by the pictures below them, sorted.

    Raises:
        DataError: A path does not exist, or there is no picture at all.
    """
    missing = [path for path in paths if not Path(path).exists()]
    if missing:
        raise DataError(f"no such file or folder: {', '.join(missing)}")
    found = []
    for path in paths:
        if Path(path).is_dir():
            below = (item for item in Path(path).rglob("*") if item.suffix.lower() in SUFFIXES and item.is_file())
            found += sorted(str(item) for item in below)
        else:
            found.append(path)
    if not found:
        raise DataError(f"no pictures in {', '.join(paths)} - expected files ending in {', '.join(sorted(SUFFIXES))}")
    return found


def predict_together(predictor: Predictor, paths: Sequence[str | Path], *, batch_size: int = 32) -> list[Prediction]:
    """Return what `Predictor.predict` does; of several connected processes each predicts its part, and all return all.

    Args:
        predictor: The model.
        paths: Picture files, the same in every process.
        batch_size: Pictures per forward pass.
    """
    processes = world()
    parts = gather(predictor.predict(paths[rank() :: processes], batch_size=batch_size))
    return [parts[at % processes][at // processes] for at in range(len(paths))]


def predictions_csv(predictions: Sequence[Prediction]) -> str:
    """Return predictions as CSV: ``path,label,probability,error``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "probability", "error"))
    for item in predictions:
        probability = "" if item.probability is None else f"{item.probability:.6f}"
        writer.writerow((item.path, item.label or "", probability, item.error or ""))
    return text.getvalue()
