"""The verb `calibrate`: a finished run's confidence, fitted on labelled pictures that it was not trained on."""

from __future__ import annotations

import dataclasses
import shlex
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from transferkit.core.errors import DataError, TransferkitWarning
from transferkit.core.text import listing, visible
from transferkit.data.scan.scan import scan_data
from transferkit.models.artifact import load_model, save_info
from transferkit.models.calibration.calibration import Calibration, cannot_calibrate, fit_calibration
from transferkit.models.calibration.conformal import cross_fitted_sets
from transferkit.models.calibration.scaling import stratified_folds
from transferkit.options.results import CalibrateConfig
from transferkit.results.predict.predictor import Predictor, load
from transferkit.runs.labelled import Labelled, LabelledPicture, labelled_pictures, run_splits
from transferkit.show.progress import counting_bar, progress_console

__all__ = ["calibrate"]

COVERAGES = (0.9, 0.95, 0.99)
UNCHANGED = "nothing was changed"


def calibrate(config: CalibrateConfig) -> Calibration:
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
        save_info(run, dataclasses.replace(info, calibration=Calibration()))
        if not config.quiet:
            Console(highlight=False).print(
                f"{visible(config.run)}: not calibrated any more, probabilities are the softmax of the logits",
                soft_wrap=True, markup=False,
            )  # fmt: skip
        return Calibration()
    predictor = load(run, accelerator=config.accelerator, precision=config.precision)
    split = _split(config)
    with counting_bar(progress_console(config.quiet), "listing pictures") as told:
        found = labelled_pictures(config.data, predictor.info.targets, split=split, skip_bad=True, progress=told)
    pictures, left_out = _unseen(run, found, config)
    logits, targets, bad = _ask(predictor, pictures, config)
    reason = cannot_calibrate(logits, targets)
    if reason is not None:
        told_out = f" (left out: {', '.join(left_out)})" if left_out else ""
        raise DataError(f"{config.data}: {reason}{told_out} - name other pictures; {UNCHANGED}")
    if bad or found.unreadable:
        warnings.warn(
            f"{config.data}: {len(bad) + found.unreadable} pictures cannot be read and were left out"
            + (f": {listing(bad)}" if bad else ""),
            TransferkitWarning,
            stacklevel=2,
        )
    source = config.data if split == "all" else f"{config.data} ({split})"
    calibration, probs = fit_calibration(logits, targets, method=config.method, seed=config.seed, fitted_on=source)
    if calibration.figures["loss_after"] >= calibration.figures["loss_before"]:
        warnings.warn(
            "the calibration does not help: the cross-fitted log loss is "
            f"{calibration.figures['loss_after']:.4f}, and {calibration.figures['loss_before']:.4f} without it - "
            "calibrate on more pictures, or take it off by --method none",
            TransferkitWarning,
            stacklevel=2,
        )
    save_info(run, dataclasses.replace(predictor.info, calibration=calibration))
    if not config.quiet:
        _print(config, calibration, logits, targets, probs, left_out)
    return calibration


# ---- pictures ---------------------------------------------------------------------------------------------------


def _split(config: CalibrateConfig) -> str:
    """Return the split to take: ``"val"`` where there is one, else everything."""
    if config.split != "auto":
        return config.split
    scan = scan_data(config.data)
    return "val" if any(file.split == "val" for file in scan.files) else "all"


def _unseen(run: Path, found: Labelled, config: CalibrateConfig) -> tuple[list[LabelledPicture], list[str]]:
    """Return the pictures to fit on, and what was left out, in words."""
    pictures = [picture for chosen in found.splits.values() for picture in chosen]
    known = run_splits(run)
    if known is None:
        warnings.warn(
            f"{run}: has no pictures.csv, which says what the run was trained on; if these pictures are among them, "
            "the model will be too sure of itself",
            TransferkitWarning,
            stacklevel=3,
        )
        known = {}
    kept = ("test",) if config.split == "auto" else ()
    met = Counter(known.get(picture.sha256) for picture in pictures)
    left_out = [f"{met['train']:,} that the run was trained on"] if met["train"] else []
    left_out += [f"{met[split]:,} of the run's {split} split" for split in kept if met[split]]
    if found.unknown:
        names = listing(list(found.unknown), limit=5)
        left_out.append(f"{sum(found.unknown.values()):,} of classes that the model lacks ({names})")
    chosen = [picture for picture in pictures if known.get(picture.sha256) not in ("train", *kept)]
    if not chosen:
        raise DataError(f"{config.data}: no picture to fit on, {' and '.join(left_out)} were left out - name others; "
                        f"{UNCHANGED}")  # fmt: skip
    return chosen, left_out


def _ask(
    predictor: Predictor, pictures: Sequence[LabelledPicture], config: CalibrateConfig
) -> tuple[Tensor, Tensor, list[str]]:
    """Return ``(N, C)`` logits and ``(N,)`` labels of the pictures that can be read, and the paths of the others."""
    logits = np.empty((len(pictures), len(predictor.class_names)), dtype=np.float32)
    targets: list[int] = []
    bad: list[str] = []
    outputs = predictor.outputs(
        [picture.path for picture in pictures], batch_size=config.batch_size, workers=config.workers
    )  # fmt: skip
    with counting_bar(progress_console(config.quiet), "computing logits") as told:
        for number, (picture, output) in enumerate(zip(pictures, outputs, strict=True), 1):
            if output.logits is None or output.sha256 not in (None, picture.sha256):
                bad.append(picture.path)
            else:
                logits[len(targets)] = output.logits[0]
                targets.append(picture.target)
            if told is not None:
                told(number, len(pictures))
    return torch.from_numpy(logits[: len(targets)]), torch.tensor(targets, dtype=torch.int64), bad


# ---- what is printed --------------------------------------------------------------------------------------------


def _print(
    config: CalibrateConfig,
    calibration: Calibration,
    logits: Tensor,
    targets: Tensor,
    probs: Tensor,
    left_out: Sequence[str],
) -> None:
    console = Console(highlight=False)
    figures = calibration.figures
    lines = [
        ("run", config.run),
        ("pictures", f"{len(targets):,} of {calibration.fitted_on}"),
        *([("left out", ", ".join(left_out))] if left_out else []),
        ("method", _method(calibration)),
        *([("labels", _labels(logits, targets, probs))] if calibration.method == "vector" else []),
        ("ECE", f"{figures['ece_before']:.4f} before, {figures['ece_after']:.4f} after"),
        ("NLL", f"{figures['loss_before']:.4f} before, {figures['loss_after']:.4f} after"),
        ("", f"after: each picture by a calibration fitted on the other {calibration.folds - 1} of {calibration.folds} "
             "folds; so the sets below"),
    ]  # fmt: skip
    for name, text in lines:
        console.print(f"{name:<9}{visible(text)}", soft_wrap=True, markup=False)
    table = Table(title="prediction sets", title_justify="left", title_style="bold")
    for column in ("coverage", "measured", "classes", "with one class"):
        table.add_column(column, justify="right")
    places = stratified_folds(targets, calibration.folds, seed=config.seed)
    for coverage in COVERAGES:
        sets = cross_fitted_sets(probs, targets, places, coverage)
        table.add_row(f"{coverage:.0%}", f"{sets['covered']:.1%}", f"{sets['size']:.2f}", f"{sets['single']:.1%}")
    console.print(table)
    console.print(
        f"next     transferkit predict {shlex.quote(visible(config.run))} PICTURE... --abstain 0.95",
        soft_wrap=True, markup=False,
    )  # fmt: skip


def _method(calibration: Calibration) -> str:
    if calibration.method == "temperature":
        return f"temperature {calibration.temperature:.3f}"
    low, high = min(calibration.scale), max(calibration.scale)
    return f"vector, scales {low:.3f} to {high:.3f}, biases {min(calibration.bias):.3f} to {max(calibration.bias):.3f}"


def _labels(logits: Tensor, targets: Tensor, probs: Tensor) -> str:
    before, after = logits.argmax(dim=1), probs.argmax(dim=1)
    accuracy = [f"{float((labels == targets).double().mean()):.1%}" for labels in (before, after)]
    changed = int((before != after).sum())
    return f"{changed:,} of {len(targets):,} change; {accuracy[0]} right before, {accuracy[1]} after"
