"""The verb `calibrate`: a finished run's confidence, fitted on labelled pictures that it was not trained on."""

from __future__ import annotations

import dataclasses
import shlex
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.table import Table

from transferkit.core.errors import ConfigError, DataError, TransferkitWarning
from transferkit.core.records import Decoding, SkippedFile
from transferkit.core.text import listing, visible
from transferkit.data.scan.columns import Columns
from transferkit.data.scan.scan import scan_data
from transferkit.features.engine.whole import Alone, Gathered, Output, Predictions
from transferkit.models.artifact import load_model, read_info, save_info
from transferkit.models.calibration.calibration import Calibration
from transferkit.models.calibration.labels import NEVER
from transferkit.models.extent import Joined
from transferkit.models.parts import FittedCalibration
from transferkit.options.results import CalibrateConfig
from transferkit.results.evaluate.outputs import readable_outputs
from transferkit.results.predict.predictor import Predictor, load
from transferkit.runs.labelled import Labelled, LabelledPicture, labelled_pictures, run_columns
from transferkit.runs.seen import run_splits
from transferkit.runs.summary import print_lines
from transferkit.runs.truths import answers_of, truths_of
from transferkit.show.progress import counting_bar, output_console, progress_console

__all__ = ["calibrate"]

UNCHANGED = "nothing was changed"


def calibrate(config: CalibrateConfig) -> FittedCalibration:
    """Fit the calibration of a run on labelled pictures, and write it into its `model.json`; no other file is touched.

    Pictures that the run was trained on are left out: a model is surer of those than of new ones. So are the run's own
    test pictures, unless the split is named, so that its test figures stay those of pictures that nothing was fitted
    on; pictures of classes it lacks; and unreadable ones.

    Args:
        config: The options.

    Returns:
        The calibration.

    Raises:
        ConfigError: The accelerator is not on this machine.
        DataError: There are too few pictures to fit on, or they are of one class.
        CheckpointError: The model is missing or damaged.
        StorageError: The disk is full or failing; `model.json` is as it was then.
        TrainingError: Memory ran out.

    Warns:
        TransferkitWarning: Pictures are unreadable, it is not known which the run was trained on, or the calibration
            does not help.
    """
    run = Path(config.run)
    if config.method == "none":
        _, info = load_model(run)
        save_info(run, info.calibrated(Calibration()))
        if not config.quiet:
            output_console().print(
                f"{visible(config.run)}: not calibrated any more: predictions are what the network returns",
                soft_wrap=True,
            )  # fmt: skip
        return Calibration()
    predictor = load(run, accelerator=config.accelerator, precision=config.precision, max_pixels=config.max_pixels)
    task = predictor.module.task
    task.require("calibrator", "calibrate")
    assert task.calibrator is not None
    if problem := task.calibration_problem(config.method):
        raise ConfigError(f"{problem} - pass another --method")
    calibrator = task.calibrator
    if config.label_precision is not None:
        calibrator = calibrator.at_precision(config.label_precision)
    if calibrator is None:
        raise ConfigError(f"--label-precision is for several labels per picture, not for {task.name} - leave it out")
    columns = run_columns(
        run, task.targets, predictor.info.targets, config.data, path_column=config.path_column, root=config.root
    )
    split = _split(config, columns)
    with counting_bar(progress_console(config.quiet), "listing pictures") as progress:
        labelled = labelled_pictures(
            config.data, predictor.info.targets, split=split, skip_bad=True, rescan=config.rescan, columns=columns,
            progress=progress,
        )  # fmt: skip
    pictures, left_out = _unseen(run, labelled, config, predictor.info.preprocessing.decoding)
    outputs, targets, bad = _ask(predictor, pictures, config)
    reason = calibrator.problem(outputs, targets)
    if reason is not None:
        rest = f" (left out: {', '.join(left_out)})" if left_out else ""
        raise DataError(f"{config.data}: {reason}{rest} - name other pictures; {UNCHANGED}")
    if bad or labelled.unreadable:
        warnings.warn(
            f"{config.data}: {len(bad) + labelled.unreadable} pictures cannot be read and were left out"
            + (f": {listing([file.path for file in bad])}" if bad else ""),
            TransferkitWarning,
            stacklevel=2,
        )
    source = config.data if split == "all" else f"{config.data} ({split})"
    fitted, predictions = calibrator.fit(outputs, targets, method=config.method, seed=config.seed)
    calibration: FittedCalibration = dataclasses.replace(fitted, fitted_on=source)
    before, after = (calibration.figures.get(f"loss_{when}") for when in ("before", "after"))
    if before is not None and after is not None and after >= before:
        warnings.warn(
            "the calibration does not help: the cross-fitted log loss is "
            f"{after:.4f}, and {before:.4f} without it - "
            "calibrate on more pictures, or take it off by --method none",
            TransferkitWarning,
            stacklevel=2,
        )
    limits = calibration.facts.get("thresholds", ())
    never = [name for name, limit in zip(predictor.class_names, limits, strict=False) if limit == NEVER]
    if never:
        warnings.warn(
            f"labels that reach no precision of {config.label_precision:g} on these pictures, and are never given: "
            f"{listing(never)} - ask for less, or calibrate on more pictures",
            TransferkitWarning,
            stacklevel=2,
        )
    save_info(run, read_info(run).calibrated(calibration))  # with its own limit of pixels
    if not config.quiet:
        summary = calibrator.summary(calibration, outputs, targets, predictions, seed=config.seed)
        _print(config, predictor, calibration, len(targets), summary, [*left_out, *labelled.answers])
    return calibration


# ---- pictures ---------------------------------------------------------------------------------------------------


def _split(config: CalibrateConfig, columns: Columns) -> str:
    """Return the split to take: ``"val"`` where there is one, else everything."""
    if config.split != "auto":
        return config.split
    scan = scan_data(config.data, columns)
    return "val" if any(file.split == "val" for file in scan.files) else "all"


def _unseen(
    run: Path, labelled: Labelled, config: CalibrateConfig, decoding: Decoding
) -> tuple[list[LabelledPicture], list[str]]:
    """Return the pictures to fit on, and what was left out, in words."""
    pictures = [picture for chosen in labelled.splits.values() for picture in chosen]
    with counting_bar(progress_console(config.quiet), "comparing pictures") as progress:
        known = run_splits(run, [picture.read for picture in pictures], decoding=decoding, progress=progress)
    if known is None:
        warnings.warn(
            f"{run}: has no pictures.csv, which says what the run was trained on; if these pictures are among them, "
            "the model will be too sure of itself",
            TransferkitWarning,
            stacklevel=3,
        )
        known = {}
    unused = ("test",) if config.split == "auto" else ()
    counts = Counter(known.get(picture.sha256) for picture in pictures)
    left_out = [f"{counts['train']:,} that the run was trained on"] if counts["train"] else []
    left_out += [f"{counts[split]:,} of the run's {split} split" for split in unused if counts[split]]
    if labelled.unknown:
        names = listing(list(labelled.unknown), limit=5)
        left_out.append(f"{sum(labelled.unknown.values()):,} of classes that the model lacks ({names})")
    chosen = [picture for picture in pictures if known.get(picture.sha256) not in ("train", *unused)]
    if not chosen:
        raise DataError(f"{config.data}: no picture to fit on, {' and '.join(left_out)} were left out - name others; "
                        f"{UNCHANGED}")  # fmt: skip
    return chosen, left_out


def _ask(
    predictor: Predictor, pictures: Sequence[LabelledPicture], config: CalibrateConfig
) -> tuple[Any, Any, list[SkippedFile]]:
    """Return outputs and answers of the N pictures that can be read, see `Extent`, and the others."""
    targets, extent = predictor.info.targets, predictor.module.task.extent
    truths = truths_of(
        targets, [one.label for one in pictures], [one.path for one in pictures], predictor.info.preprocessing
    )
    labels = {one.path: one.label for one in pictures}
    rows, answers = Joined(extent), Joined(extent)
    bad: list[SkippedFile] = []
    outputs = predictor.outputs(
        [picture.path for picture in pictures], batch_size=config.batch_size, workers=config.workers
    )  # fmt: skip

    def begin(output: Output) -> Gathered:
        truth = None if truths is None else truths.of(output.name)
        if output.window is not None and extent.windows is not None and truth is not None:
            return Predictions(lambda logits: torch.from_numpy(logits[0]), extent.windows.counted(truth))

        def entries(logits: npt.NDArray[np.float32]) -> Any:
            first = torch.from_numpy(logits[:1])
            answer = answers_of(targets, [labels[output.name]], first, truths)
            return extent.entries(first, answer, None if truth is None else [truth])

        return Alone(entries)

    for _, output, made in readable_outputs(
        pictures, outputs, begin, bad, title="computing logits", quiet=config.quiet
    ):
        row, answer = made if output.window is None else ([made], [made])
        rows.add(row)
        answers.add(answer)
    return rows.whole(), answers.whole(), bad


# ---- what is printed --------------------------------------------------------------------------------------------


def _print(
    config: CalibrateConfig,
    predictor: Predictor,
    calibration: FittedCalibration,
    count: int,
    summary: tuple[list[tuple[str, str]], tuple[str, ...], list[tuple[str, ...]]],
    left_out: Sequence[str],
) -> None:
    console = output_console()
    lines, columns, rows = summary
    lines = [
        ("run", config.run),
        ("pictures", f"{count:,} of {calibration.fitted_on}"),
        *([("left out", ", ".join(left_out))] if left_out else []),
        *lines,
    ]
    if calibration.folds:
        lines.append(("", f"after: each picture by a calibration fitted on the other {calibration.folds - 1} of "
                          f"{calibration.folds} folds; so the sets below"))  # fmt: skip
    print_lines(console, lines)
    sets = predictor.module.task.output.names_one
    table = Table(title="prediction sets" if sets else None, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    flag = " --abstain 0.95" if sets else " --coverage 0.95" if calibration.covers else ""
    print_lines(console, [("next", f"transferkit predict {shlex.quote(config.run)} PICTURE..." + flag)])
