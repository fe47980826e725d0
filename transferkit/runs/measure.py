"""A model on held-out pictures: calibrated on `val`, measured on every split, a row per picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transferkit.core.csv import csv_text
from transferkit.core.files import atomic_write
from transferkit.core.targets import TargetSpec
from transferkit.data.augment.normalise import normalise
from transferkit.data.batches.datamodule import ImageData
from transferkit.models.calibration.calibration import Calibration
from transferkit.models.freezing import evaluation_mode
from transferkit.models.module import TransferModule
from transferkit.models.parts import FittedCalibration
from transferkit.models.task import Task
from transferkit.models.unlike.distance import sample_places
from transferkit.runs.truths import Truths, truths_of

__all__ = [
    "Outputs",
    "Row",
    "measure_splits",
    "network_outputs",
    "outputs_of_split",
    "prediction_rows",
    "predictions_of",
    "running_figures",
    "write_predictions",
]

Row = tuple[str, ...]


@dataclass(frozen=True)
class Outputs:
    """What a network returns for the pictures of one split.

    Attributes:
        paths: N files.
        outputs: Of N pictures, as the task keeps them, see `Extent`: ``(N, width) float32``, or a list of records.
        targets: Of N pictures, likewise.
        distances: From the training pictures, ``(N, 1)``; ``None`` where the model knows none.
        features: Of some of the pictures, ``(S, D)``; likewise.
    """

    paths: tuple[str, ...]
    outputs: Any
    targets: Any
    distances: Tensor | None = None
    features: Tensor | None = None


def network_outputs(
    module: TransferModule,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    device: str = "cpu",
    paths: Sequence[str] = (),
    truths: Truths | None = None,
) -> tuple[Any, Any]:
    """Return outputs and answers of a loader's pictures, in order, in fp32, as the task keeps them, see `Extent`.

    Args:
        module: The model.
        loader: Gives ``(B, H, W, 3) uint8`` pictures and targets.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        paths: The pictures, where their answers lie on pixels and are to be measured at their own size.
        truths: Those answers.
    """
    module.eval().to(device)
    extent = module.task.extent
    if truths is not None and truths.config.tiled:
        entries = list(_of_windows(module, loader, device, paths, truths))
        return entries, entries
    outputs: list[Any] = []
    answers: list[Any] = []
    done = 0
    with torch.inference_mode():
        for images, targets in loader:
            batch = module(normalise(images.to(device, non_blocking=True), module.data_config))
            own = None if truths is None else [truths.of(path) for path in paths[done : done + len(targets)]]
            done += len(targets)
            for column, part in zip((outputs, answers), extent.entries(batch, targets, own), strict=True):
                column.append(part)
    return extent.join(outputs), extent.join(answers)


def _of_windows(
    module: TransferModule, loader: Iterable[tuple[Tensor, Tensor]], device: str, paths: Sequence[str], truths: Truths
) -> Iterator[Any]:
    """Yield what is kept of each picture whose windows a loader gives, one picture after the other."""
    collects = module.task.extent.windows
    if collects is None:
        raise TypeError(f"outputs of {module.task.name} are not put together of windows")
    outputs = _outputs(module, loader, device)
    for path in paths:
        truth = truths.of(path)
        counted = collects.counted(truth)
        for window, output in zip(truths.windows(truth), outputs, strict=False):  # the shorter one comes first
            counted.add(output, window)
        yield counted.done()


def _outputs(module: TransferModule, loader: Iterable[tuple[Tensor, Tensor]], device: str) -> Iterator[Tensor]:
    """Yield the output of each row of a loader."""
    for images, _ in loader:
        with torch.inference_mode():
            outputs = module(normalise(images.to(device, non_blocking=True), module.data_config))
        yield from outputs


def running_figures(
    module: TransferModule, loader: Iterable[tuple[Tensor, Tensor]], names: Sequence[str], *, device: str = "cpu"
) -> dict[str, float]:
    """Return figures of a loader's pictures as an epoch reports them; no outputs are kept. Modes are restored.

    Args:
        module: The model.
        loader: As for `network_outputs`, of at least one picture.
        names: ``"loss"``, for the plain one, or figures that the objective can watch.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
    """
    objective, before = module.task.objective, module.device
    means = ("loss", *objective.running)
    metrics = objective.metrics([name for name in names if name not in means], module.num_classes)
    sums, count = torch.zeros(len(means), dtype=torch.float64), 0
    with evaluation_mode(module.to(device)), torch.inference_mode():
        for images, targets in loader:
            moved = targets.to(device)
            outputs = module(normalise(images.to(device, non_blocking=True), module.data_config)).float()
            loss = objective.item_losses(outputs, moved).double().sum().reshape(1)
            sums += torch.cat((loss, objective.running_sums(outputs, moved).double())).cpu()
            count += len(targets)
            predictions = module.task.output.activate(outputs)
            for metric in metrics.values():
                metric.to(device).update(predictions, moved)
    module.to(before)
    values = dict(zip(means, (sums / count).tolist(), strict=True))
    values |= {name: float(metric.compute()) for name, metric in metrics.items()}
    return {name: values[name] for name in names}


def outputs_of_split(module: TransferModule, data: ImageData, split: str, *, device: str = "cpu") -> Outputs:
    """Return what a network returns for the pictures of a split, in index order. Raises `DataError` when empty."""
    loader = data.evaluation_loader(split)
    paths = tuple(str(Path(record.path).absolute()) for record in data.index.split(split))
    if module.unlike is None:
        labels, files = zip(*((record.label, record.path) for record in data.index.split(split)), strict=True)
        truths = truths_of(data.index.targets, labels, files, data.data_config)
        return Outputs(paths, *network_outputs(module, loader, device=device, paths=files, truths=truths))
    module.eval().to(device)
    columns: tuple[list[Tensor], ...] = ([], [], [], [])
    sample, done = torch.from_numpy(sample_places(len(paths))), 0
    with torch.inference_mode():
        for images, targets in loader:
            inputs = normalise(images.to(device, non_blocking=True), module.data_config)
            features, outputs = module.features_and_outputs(inputs)
            mine = sample[(sample >= done) & (sample < done + len(targets))] - done
            done += len(targets)
            parts = (outputs.float(), targets, module.unlike(features), features.float()[mine.to(device)])
            for column, part in zip(columns, parts, strict=True):
                column.append(part.cpu())
    return Outputs(paths, *(torch.cat(column).clone() for column in columns))


def predictions_of(
    module: TransferModule, loader: Iterable[tuple[Tensor, Tensor]], *, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Return predictions ``(N, width) float32``, not calibrated, and targets, as `network_outputs` does."""
    outputs, targets = network_outputs(module, loader, device=device)
    return module.task.output.activate(outputs), targets


def measure_splits(
    outputs: Mapping[str, Outputs], task: Task, spec: TargetSpec, *, method: str, seed: int
) -> tuple[dict[str, Any], FittedCalibration, list[Row]]:
    """Calibrate on the validation pictures, and measure every split with the predictions that users will see.

    Those of `val` are cross-fitted: each come from a calibration fitted without the picture. Those of `test` are
    what the saved model gives.

    Args:
        outputs: By split; without ``"val"`` nothing is calibrated.
        task: What measures and calibrates.
        spec: What the answers mean.
        method: Of the calibration, such as ``"temperature"``; ``"none"`` for none.
        seed: Of the folds and the bootstrap.

    Returns:
        The task's name and metrics by split, with ``"calibration"`` beside them where there is one; the calibration; a
        row per picture for `write_predictions`.
    """
    calibration: FittedCalibration = Calibration()
    fitted: Tensor | None = None
    if task.calibrator is not None and method != "none" and "val" in outputs:
        val = outputs["val"]
        calibration, fitted = task.calibrator.fit(val.outputs, val.targets, method=method, seed=seed)
        spec = spec.with_facts(calibration.facts)
    calibrated = calibration.method != "none"
    metrics: dict[str, Any] = {"task": task.name}
    rows: list[Row] = []
    for split, part in outputs.items():
        cross_fitted = fitted if split == "val" else None
        predictions = task.predictions(part.outputs, calibration) if cross_fitted is None else cross_fitted
        plain = task.output.activate(part.outputs) if calibrated else None
        metrics[split] = task.values(predictions, part.targets, spec, plain=plain, seed=seed)
        rows += prediction_rows(task, split, part.paths, predictions, part.targets, spec)
    if calibrated:
        metrics["calibration"] = {
            "method": calibration.method,
            "temperature": calibration.temperature,
            "fitted_on": calibration.fitted_on,
            "folds": calibration.folds,
            **calibration.figures,
        }
    return metrics, calibration, rows


def prediction_rows(
    task: Task, split: str, paths: Sequence[str], predictions: Tensor, targets: Tensor, spec: TargetSpec
) -> list[Row]:
    """Return a row per picture for `write_predictions`: split, path, and the columns of the task."""
    cells = task.output.rows(predictions, targets, spec)
    return [(split, path, *row) for path, row in zip(paths, cells, strict=True)]


def write_predictions(path: Path, task: Task, rows: Sequence[Row]) -> None:
    """Write `predictions.csv`. Raises `StorageError`."""
    atomic_write(path, csv_text([("split", "path", *task.output.columns), *rows]))
