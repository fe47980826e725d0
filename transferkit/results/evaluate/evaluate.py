"""The verb `evaluate`: a finished run on labelled pictures, measured, drawn and written down."""

from __future__ import annotations

import dataclasses
import hashlib
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.csv import csv_text
from transferkit.core.errors import CheckpointError, ConfigError, DataError, TransferkitWarning
from transferkit.core.files import atomic_write, sha256_of_file, write_json
from transferkit.core.records import Decoding, SkippedFile
from transferkit.data.index.targets import Targets
from transferkit.features.engine.whole import Output
from transferkit.models.extent import Joined
from transferkit.options.results import EvaluateConfig
from transferkit.results.evaluate.against import Paired
from transferkit.results.evaluate.corruptions import corruption_rows, figures_spoilt, require_views
from transferkit.results.evaluate.outputs import Several, measuring, readable_outputs
from transferkit.results.evaluate.summary import print_evaluation
from transferkit.results.evaluate.unlike import Likeness, doubts_of, require_statistics
from transferkit.results.predict.predictor import Predictor, load
from transferkit.results.report.report import report_on
from transferkit.runs.directory import named_run_dir, open_run_dir, prepare_run_dir
from transferkit.runs.labelled import Labelled, LabelledPicture, labelled_pictures, refuse_unreadable, run_columns
from transferkit.runs.measure import Row, prediction_rows, write_predictions
from transferkit.runs.seen import run_splits
from transferkit.runs.truths import Truths, answers_of, truths_of
from transferkit.runs.write import environment, write_config, write_metrics
from transferkit.show.progress import counting_bar, progress_console

__all__ = ["evaluate"]


def evaluate(config: EvaluateConfig) -> Path:
    """Measure a run on labelled pictures, and write a directory about it.

    Args:
        config: The options.

    Returns:
        The directory: `config.yaml`, `data.json`, `metrics.json` (keyed by split, ``"all"`` for data without splits),
        `predictions.csv`, `report.html`, and the tables and plots of the task; of classification `per_class.csv`,
        `confusion.csv` and `reliability.csv`.

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
    run = Path(config.run).resolve()
    with named_run_dir(config.out, config.data, f"{run.name}-evaluate") as out:
        return _evaluate(config, run, out)


def _evaluate(config: EvaluateConfig, run: Path, out: Path) -> Path:
    started = time.perf_counter()
    _check_out(out, config)
    predictor = load(run, accelerator=config.accelerator, precision=config.precision, max_pixels=config.max_pixels)
    digest = sha256_of_file(run / "model.safetensors")  # while it is what was loaded
    task, targets = predictor.module.task, predictor.info.targets
    spec = predictor.info.target_spec
    require_statistics(predictor, config)
    require_views(predictor, config)
    if config.check_classes and predictor.module.feed.on_pixels:
        raise ConfigError(
            f"--check-classes compares the labels of pictures with classes, and answers of {task.name} lie on pixels - "
            "leave it out"
        )
    likeness = Likeness(predictor, config.seed)
    against = None if config.against is None else Paired(Path(config.against), config, task, targets, spec)
    columns = run_columns(run, task.targets, targets, config.data, path_column=config.path_column, root=config.root)
    with counting_bar(progress_console(config.quiet), "listing pictures") as progress:
        everything = labelled_pictures(
            config.data, targets, split=config.split, skip_bad=config.skip_bad, check_classes=config.check_classes,
            rescan=config.rescan, columns=columns, progress=progress,
        )  # fmt: skip
    labelled, origin = _unseen(everything, config, predictor.info.preprocessing.decoding)

    with open_run_dir(out, resume=False, overwrite=config.overwrite):
        splits, rows, bad, doubts = _measure(likeness, against, labelled, config)
        refuse_unreadable([] if config.skip_bad else bad)
        if not splits:
            raise DataError(f"{config.data}: none of its {len(labelled)} pictures can be read - check the files")
        labelled = dataclasses.replace(labelled, skipped=tuple(sorted([*labelled.skipped, *bad], key=lambda b: b.path)))
        places = {
            "run": str(run),
            "data": _absolute(config.data),
            "against": config.against and _absolute(config.against),
            "unlike": config.unlike and _absolute(config.unlike),
        }
        write_config(out, {**dataclasses.asdict(config), **places})
        _describe_data(out, labelled, targets, rows)
        write_predictions(out / "predictions.csv", task, rows)
        if task.details is not None:
            cells = {split: [row[2:] for row in rows if row[0] == split] for split in splits}
            for split, values in splits.items():
                values |= task.details.values(cells[split], spec)
            whole = {split: [row[1:] for row in rows if row[0] == split] for split in splits}
            for name, table in task.details.tables(splits, whole).items():
                atomic_write(out / name, csv_text(table))
            task.details.draw(out, splits, run.name)
            if against is not None:
                atomic_write(out / "against.csv", csv_text(task.details.differences(against.splits)))
        if config.corruptions:
            atomic_write(out / "corruptions.csv", csv_text(corruption_rows(splits)))
        calibration = predictor.info.calibration
        metrics: dict[str, Any] = {
            "task": task.name,
            **splits,
            "run": places["run"],
            "data": places["data"],
            "model_sha256": digest,
            **origin,
            "left_out": {
                "unknown_classes": sum(labelled.unknown.values()),
                "unreadable": labelled.unreadable + len(labelled) - len(rows),
                "seen_in_training": len(everything) - len(labelled),
            },
            "tta": config.tta,
        }
        metrics |= likeness.results(config, doubts)
        if calibration.method != "none":
            metrics["calibration"] = {"method": calibration.method, "temperature": calibration.temperature,
                                      "fitted_on": calibration.fitted_on}  # fmt: skip
        if against is not None:
            metrics["against"] = against.results()
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
    for path in filter(None, (config.run, config.data, config.against, config.unlike)):
        if Path(path).exists() and Path(path).resolve().is_relative_to(out.resolve()):
            raise ConfigError(
                f"--out {out} holds {path}, which is read, expected another directory - give another --out"
            )
    if config.overwrite and (out / "model.safetensors").exists():
        raise CheckpointError(f"{out}: holds a model, so --overwrite will not replace it - give another --out")
    prepare_run_dir(out, resume=False, overwrite=config.overwrite)


def _unseen(labelled: Labelled, config: EvaluateConfig, decoding: Decoding) -> tuple[Labelled, dict[str, Any]]:
    """Return the pictures to measure on, and how many of them the run has met before."""
    pictures = [picture.read for of_split in labelled.splits.values() for picture in of_split]
    with counting_bar(progress_console(config.quiet), "comparing pictures") as progress:
        known = run_splits(config.run, pictures, decoding=decoding, progress=progress)
    if known is None:
        if config.unseen_only:
            raise CheckpointError(
                f"{config.run}: has no pictures.csv, which says what the run was trained on, so --unseen-only cannot "
                "work - leave it out, or train again"
            )
        return labelled, {"seen_in_training": None, "seen_in_val": None}
    if config.unseen_only:
        rest = {
            name: tuple(picture for picture in pictures if known.get(picture.sha256) != "train")
            for name, pictures in labelled.splits.items()
        }
        labelled = dataclasses.replace(labelled, splits={name: pictures for name, pictures in rest.items() if pictures})
        if not len(labelled):
            raise DataError(f"{config.data}: the run was trained on every picture of it - leave --unseen-only out, or "
                            "name other pictures")  # fmt: skip
    counts = Counter(known.get(picture.sha256) for pictures in labelled.splits.values() for picture in pictures)
    if counts["train"]:
        warnings.warn(
            f"the run was trained on {counts['train']:,} of these {len(labelled):,} pictures, so their figures say "
            "little about new ones - pass --unseen-only to leave them out",
            TransferkitWarning,
            stacklevel=3,
        )
    return labelled, {"seen_in_training": counts["train"], "seen_in_val": counts["val"]}


def _measure(
    likeness: Likeness, against: Paired | None, labelled: Labelled, config: EvaluateConfig
) -> tuple[dict[str, dict[str, Any]], list[Row], list[SkippedFile], dict[str, npt.NDArray[np.float32]]]:
    """Return metrics by split, a row per picture, what could not be read, and how unsure the model is by split.

    One split at a time is in memory.
    """
    predictor = likeness.predictor
    task, targets, spec = predictor.module.task, predictor.info.targets, predictor.info.target_spec
    splits: dict[str, dict[str, Any]] = {}
    rows: list[Row] = []
    bad: list[SkippedFile] = []
    doubts: dict[str, npt.NDArray[np.float32]] = {}
    for split, pictures in labelled.splits.items():
        truths = _truths(predictor, pictures)
        good, predictions, plain = _ask(likeness, split, pictures, truths, config, bad)
        if not good or (bad and not config.skip_bad):
            continue  # all that is unreadable is told at once, so the others are still read
        answers = answers_of(targets, [picture.label for picture in good], predictions, truths)
        splits[split] = task.values(predictions, answers, spec, plain=plain, seed=config.seed)
        rows += prediction_rows(task, split, [picture.path for picture in good], predictions, answers, spec)
        if config.corruptions:
            splits[split]["corruptions"] = figures_spoilt(predictor, good, truths, config)
        if task.output.names_one:
            doubts[split] = doubts_of(predictions)
        if against is not None:
            bad += against.add(split, good, predictions)
    return splits, rows, bad, doubts


def _truths(predictor: Predictor, pictures: Sequence[LabelledPicture]) -> Truths | None:
    labels, paths = [picture.label for picture in pictures], [picture.path for picture in pictures]
    return truths_of(predictor.info.targets, labels, paths, predictor.info.preprocessing)


def _ask(
    likeness: Likeness,
    split: str,
    pictures: Sequence[LabelledPicture],
    truths: Truths | None,
    config: EvaluateConfig,
    bad: list[SkippedFile],
) -> tuple[list[LabelledPicture], Any, Any]:
    """Return the N readable pictures, their predictions, and those without calibration where there is one."""
    predictor = likeness.predictor
    task = predictor.module.task
    predictions, plain = Joined(task.extent), Joined(task.extent)
    calibrated = predictor.info.calibration.method != "none"
    good: list[LabelledPicture] = []
    outputs = predictor.outputs(
        [picture.path for picture in pictures], tta=config.tta, batch_size=config.batch_size, workers=config.workers,
        seed=config.seed, features=True,
    )  # fmt: skip

    def plain_probs(logits: npt.NDArray[np.float32]) -> Any:
        return task.output.merge(task.output.activate(torch.from_numpy(logits)).numpy())

    def begin(output: Output) -> Several:
        truth = None if truths is None else truths.of(output.name)
        ways = (None, plain_probs) if calibrated else (None,)
        return Several([measuring(predictor, output, truth, probs) for probs in ways])

    for picture, output, (prediction, *rest) in readable_outputs(
        pictures, outputs, begin, bad, title="evaluating", quiet=config.quiet
    ):
        likeness.add(split, output)
        predictions.add(task.extent.table([prediction]))
        for one in rest:
            plain.add(task.extent.table([one]))
        good.append(picture)
    return good, predictions.whole(), plain.whole() if calibrated else None


def _describe_data(out: Path, labelled: Labelled, targets: Targets, rows: Sequence[Row]) -> None:
    """Write `data.json` about the pictures that were measured: `rows` of `predictions.csv`."""
    measured_paths = {(split, path) for split, path, *_ in rows}
    counts: dict[str, dict[str, int]] = {}
    sizes: dict[str, int] = {}
    lines = []
    for split, pictures in labelled.splits.items():
        measured = [picture for picture in pictures if (split, picture.path) in measured_paths]
        sizes[split] = len(measured)
        counted = targets.counts(picture.label for picture in measured)
        counts[split] = dict(zip(targets.stratum_names, counted, strict=True))
        lines += [f"{picture.sha256}\0{targets.identity(picture.label)}\0{split}\n" for picture in measured]
    write_json(
        out / "data.json",
        {
            "classes": list(targets.spec.names),
            "counts": counts,
            "pictures": sizes,
            "digest": hashlib.sha256("".join(sorted(lines)).encode()).hexdigest(),
            "unknown_classes": dict(labelled.unknown),
            "missing_classes": list(labelled.missing),
            "skipped": [{"path": file.path, "reason": file.reason} for file in labelled.skipped],
            "notes": [*labelled.notes, *(said for said in labelled.answers if said not in labelled.notes)],
            "answers": list(labelled.answers),
        },
    )


def _absolute(path: str) -> str:
    return str(Path(path).absolute()) if Path(path).exists() else path
