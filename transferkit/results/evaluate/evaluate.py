"""The verb `evaluate`: a finished run on labelled pictures, measured, drawn and written down."""

from __future__ import annotations

import dataclasses
import hashlib
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transferkit.core.errors import CheckpointError, ConfigError, DataError, TransferkitWarning
from transferkit.core.files import sha256_of_file, write_json
from transferkit.core.records import SkippedFile
from transferkit.models.figures.classification import confidence_metrics
from transferkit.options.results import EvaluateConfig
from transferkit.results.evaluate.against import Paired
from transferkit.results.evaluate.plots import plot_confusion, reliability_chart
from transferkit.results.evaluate.summary import print_evaluation
from transferkit.results.evaluate.tables import MOST, confusions, write_differences, write_tables
from transferkit.results.predict.predictor import Predictor, load
from transferkit.results.report.report import report_on
from transferkit.runs.directory import default_run_dir, open_run_dir, prepare_run_dir
from transferkit.runs.labelled import Labelled, LabelledPicture, labelled_pictures, refuse_unreadable, run_splits
from transferkit.runs.measure import Row, prediction_rows, write_predictions
from transferkit.runs.write import environment, write_config, write_metrics
from transferkit.show.charts import save_charts
from transferkit.show.progress import counting_bar, progress_console

__all__ = ["evaluate"]

SHOWN = 10
"""Confusions in `metrics.json`."""


def evaluate(config: EvaluateConfig) -> Path:
    """Measure a run on labelled pictures, and write a directory about it.

    Args:
        config: The options.

    Returns:
        The directory: `config.yaml`, `data.json`, `metrics.json` (keyed by split, ``"all"`` for data without splits),
        `predictions.csv`, `per_class.csv`, `confusion.csv`, `reliability.csv`, their plots, and `report.html`.

    Raises:
        ConfigError: An option does not fit the model or the machine.
        DataError: There is no picture to measure on, or some are unreadable.
        ExportError: The classes are not those of the model, with `check_classes`.
        CheckpointError: The model is missing or damaged, or the directory is taken.
        StorageError: The disk is full or failing.
        TrainingError: Memory ran out.

    Warns:
        TransferkitWarning: The run was trained on some of the pictures.
    """
    started = time.perf_counter()
    run = Path(config.run).resolve()
    out = Path(config.out) if config.out else default_run_dir(config.data, f"{run.name}-evaluate")
    _check_out(out, config)
    predictor = load(run, accelerator=config.accelerator, precision=config.precision)
    digest = sha256_of_file(run / "model.safetensors")  # while it is what was loaded
    against = None if config.against is None else Paired(Path(config.against), config)
    with counting_bar(progress_console(config.quiet), "listing pictures") as told:
        found = labelled_pictures(
            config.data, predictor.info.targets, split=config.split, skip_bad=config.skip_bad,
            check_classes=config.check_classes, progress=told,
        )  # fmt: skip
    labelled, origin = _unseen(found, config)

    with open_run_dir(out, resume=False, overwrite=config.overwrite):
        splits, rows, bad = _measure(predictor, against, labelled, config)
        refuse_unreadable([] if config.skip_bad else bad)
        if not splits:
            raise DataError(f"{config.data}: none of its {len(labelled)} pictures can be read - check the files")
        labelled = dataclasses.replace(labelled, skipped=tuple(sorted([*labelled.skipped, *bad], key=lambda b: b.path)))
        places = {
            "run": str(run),
            "data": _absolute(config.data),
            "against": config.against and _absolute(config.against),
        }
        write_config(out, {**dataclasses.asdict(config), **places})
        _describe_data(out, labelled, predictor.class_names, {path for _, path, *_ in rows})
        write_predictions(out / "predictions.csv", predictor.module.task, rows)
        write_tables(out, splits, {name: values["confusions"] for name, values in splits.items()})
        _plot(out, splits, predictor.class_names, run.name)
        for values in splits.values():
            values["confusions"] = values["confusions"][:SHOWN]
        calibration = predictor.info.calibration
        metrics: dict[str, Any] = {
            **splits,
            "run": places["run"],
            "data": places["data"],
            "model_sha256": digest,
            **origin,
            "left_out": {
                "unknown_classes": sum(labelled.unknown.values()),
                "unreadable": labelled.unreadable + len(labelled) - len(rows),
                "seen_in_training": len(found) - len(labelled),
            },
            "tta": config.tta,
        }
        if calibration.method != "none":
            metrics["calibration"] = {"method": calibration.method, "temperature": calibration.temperature,
                                      "fitted_on": calibration.fitted_on}  # fmt: skip
        if against is not None:
            metrics["against"] = against.results()
            write_differences(out, against.splits)
        metrics["time_s"] = time.perf_counter() - started
        metrics["environment"] = {**environment(predictor.device), "precision": config.precision}
        write_metrics(out, metrics)
    if not config.quiet:
        print_evaluation(out)
    if config.report == "on":
        report_on(out, quiet=config.quiet)
    return out


# ---- parts ------------------------------------------------------------------------------------------------------


def _check_out(out: Path, config: EvaluateConfig) -> None:
    """Refuse a directory that cannot be written to, or that `--overwrite` would take more from than an evaluation."""
    kept = [config.run, config.data, *([config.against] if config.against else [])]
    for path in kept:
        if Path(path).exists() and Path(path).resolve().is_relative_to(out.resolve()):
            raise ConfigError(
                f"--out {out} holds {path}, which is read, expected another directory - give another --out"
            )
    if config.overwrite and (out / "model.safetensors").exists():
        raise CheckpointError(f"{out}: holds a model, so --overwrite will not replace it - give another --out")
    prepare_run_dir(out, resume=False, overwrite=config.overwrite)


def _unseen(found: Labelled, config: EvaluateConfig) -> tuple[Labelled, dict[str, Any]]:
    """Return the pictures to measure on, and how many of them the run has met before."""
    known = run_splits(config.run)
    if known is None:
        if config.unseen_only:
            raise CheckpointError(
                f"{config.run}: has no pictures.csv, which says what the run was trained on, so --unseen-only cannot "
                "work - leave it out, or train again"
            )
        return found, {"seen_in_training": None, "seen_in_val": None}
    if config.unseen_only:
        rest = {
            name: tuple(picture for picture in pictures if known.get(picture.sha256) != "train")
            for name, pictures in found.splits.items()
        }
        found = dataclasses.replace(found, splits={name: pictures for name, pictures in rest.items() if pictures})
        if not len(found):
            raise DataError(f"{config.data}: the run was trained on every picture of it - leave --unseen-only out, or "
                            "name other pictures")  # fmt: skip
    met = Counter(known.get(picture.sha256) for pictures in found.splits.values() for picture in pictures)
    if met["train"]:
        warnings.warn(
            f"the run was trained on {met['train']:,} of these {len(found):,} pictures, so their accuracy says little "
            "about new ones - pass --unseen-only to leave them out",
            TransferkitWarning,
            stacklevel=3,
        )
    return found, {"seen_in_training": met["train"], "seen_in_val": met["val"]}


def _measure(
    predictor: Predictor, against: Paired | None, labelled: Labelled, config: EvaluateConfig
) -> tuple[dict[str, dict[str, Any]], list[Row], list[SkippedFile]]:
    """Return metrics by split, a row per picture, and what could not be read; one split at a time is in memory."""
    splits: dict[str, dict[str, Any]] = {}
    rows: list[Row] = []
    bad: list[SkippedFile] = []
    for split, pictures in labelled.splits.items():
        good, probs, plain, unread = _ask(predictor, pictures, config)
        bad += unread
        if not good or (bad and not config.skip_bad):
            continue  # all that is unreadable is told at once, so the others are still read
        targets = torch.tensor([picture.target for picture in good])
        task, spec = predictor.module.task, predictor.info.target_spec
        values = task.values(probs, targets, spec, seed=config.seed)
        if plain is not None:
            values["uncalibrated"] = plain
        predicted = probs.argmax(dim=1)
        values["confusions"] = confusions(targets.numpy(), predicted.numpy(), predictor.class_names, MOST)
        splits[split] = values
        rows += prediction_rows(task, split, [picture.path for picture in good], probs, targets, spec)
        if against is not None:
            bad += against.add(split, good, probs, predictor.class_names)
    return splits, rows, bad


def _ask(
    predictor: Predictor, pictures: Sequence[LabelledPicture], config: EvaluateConfig
) -> tuple[list[LabelledPicture], Tensor, dict[str, float] | None, list[SkippedFile]]:
    """Return the readable pictures, ``(N, C)`` calibrated probabilities, loss and ECE without calibration, the rest."""
    calibrated = predictor.info.calibration.method != "none"
    probs = np.empty((len(pictures), len(predictor.class_names)), dtype=np.float32)
    before: list[tuple[float, float, bool]] = []
    good: list[LabelledPicture] = []
    bad: list[SkippedFile] = []
    outputs = predictor.outputs(
        [picture.path for picture in pictures], tta=config.tta, batch_size=config.batch_size, workers=config.workers,
        seed=config.seed,
    )  # fmt: skip
    with counting_bar(progress_console(config.quiet), "evaluating") as told:
        for number, (picture, output) in enumerate(zip(pictures, outputs, strict=True), 1):
            if output.logits is None:
                bad.append(SkippedFile(picture.path, str(output.error)))
            elif output.sha256 not in (None, picture.sha256):
                bad.append(SkippedFile(picture.path, "it changed while it was evaluated"))
            else:
                probs[len(good)] = predictor.probs(output.logits)
                if calibrated:
                    plain = torch.from_numpy(output.logits).softmax(dim=1).mean(dim=0)
                    best = int(plain.argmax())
                    before.append((float(plain[picture.target]), float(plain[best]), best == picture.target))
                good.append(picture)
            if told is not None:
                told(number, len(pictures))
    uncalibrated = None
    if before:
        own, top, right = (torch.tensor(values) for values in zip(*before, strict=True))
        uncalibrated = confidence_metrics(own, top, right)
    return good, torch.from_numpy(probs[: len(good)]), uncalibrated, bad


def _describe_data(out: Path, labelled: Labelled, class_names: Sequence[str], measured: set[str]) -> None:
    counts: dict[str, dict[str, int]] = {}
    lines = []
    for split, pictures in labelled.splits.items():
        kept = [picture for picture in pictures if picture.path in measured]
        counted = Counter(picture.target for picture in kept)
        counts[split] = {name: counted[index] for index, name in enumerate(class_names)}
        lines += [f"{picture.sha256}\0{class_names[picture.target]}\0{split}\n" for picture in kept]
    write_json(
        out / "data.json",
        {
            "classes": list(class_names),
            "counts": counts,
            "digest": hashlib.sha256("".join(sorted(lines)).encode()).hexdigest(),
            "unknown_classes": dict(labelled.unknown),
            "missing_classes": list(labelled.missing),
            "skipped": [{"path": file.path, "reason": file.reason} for file in labelled.skipped],
            "notes": list(labelled.notes),
        },
    )


def _plot(out: Path, splits: Mapping[str, Mapping[str, Any]], class_names: Sequence[str], name: str) -> None:
    """Draw what has a picture; of several splits each has its own, with its name in that of the file."""
    for split, values in splits.items():
        mark = "" if len(splits) == 1 else f"_{split}"
        title = f"{name} on {values['n']:,} pictures" + ("" if split == "all" else f" ({split})")
        if values["confusion"] is not None:
            plot_confusion(values["confusion"], class_names, out / f"confusion{mark}.png", title=title)
        before = values.get("uncalibrated")
        error = f"ECE {values['ece']:.3f}" + (f", {before['ece']:.3f} before calibration" if before else "")
        chart = reliability_chart(values["reliability"], f"{title}: {error}", "pictures")
        if chart is not None:
            save_charts([chart], out / f"reliability{mark}.png")


def _absolute(path: str) -> str:
    return str(Path(path).absolute()) if Path(path).exists() else path
