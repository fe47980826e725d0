"""After training: the product is made of the weights that were trained, and it is said what it is worth.

`conclude` tells it in the first of several processes: pick, finish, measure, save, report.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from transferkit.data.augment.normalise import normalise
from transferkit.models.artifact import save_model
from transferkit.models.parts import FittedCalibration
from transferkit.options.training import FinetuneConfig
from transferkit.runs.curves import history_charts
from transferkit.runs.files import followed_figures
from transferkit.runs.measure import Row, measure_splits, outputs_of_split, write_predictions
from transferkit.runs.write import environment, write_metrics
from transferkit.show.charts import save_charts
from transferkit.training.craft.batchnorm import recalibrate_bn
from transferkit.training.craft.interpolation import choose_alpha, load_start
from transferkit.training.craft.snapshots import measure_snapshots, weights_of
from transferkit.training.loop.checkpoints import foreign_checkpoint, load_checkpoint
from transferkit.training.loop.recorder import RunRecorder
from transferkit.training.ranks.parallel import by_first
from transferkit.training.setup import Training
from transferkit.training.teaching import teacher_facts
from transferkit.training.unlike import fit_on_training, hold_out

__all__ = ["conclude"]


@by_first
def conclude(
    run: Path, training: Training[FinetuneConfig], recorder: RunRecorder, measured: Sequence[str]
) -> dict[str, Any]:
    """Make the product of the weights that were trained, and say what it is worth. `metrics.json` comes last."""
    _pick(training, recorder)
    started = time.perf_counter()
    splits = [split for split in measured if training.data.index.split(split)]
    craft = _finish(run, training, recorder.selection.best_epoch)
    figures, calibration, rows = _measure(training, splits, fit_on_training(training))
    if training.config.snapshots:
        craft["snapshots"] = measure_snapshots(
            run, training.module, training.data, splits, device=training.device, seed=training.config.seed
        )
    save_model(run, training.module.cpu(), calibration=calibration)
    write_predictions(run / "predictions.csv", training.module.task, rows)
    metrics = {
        **figures,
        "selection": recorder.chosen(tested="test" in splits),
        **craft,
        **teacher_facts(training.config),
        "phases": recorder.history.phases(),
        "time_s": sum(recorder.history.phase_seconds.values()) + time.perf_counter() - started,
        "environment": {**environment(training.device), **dataclasses.asdict(training.machine)},
    }
    _report(run, training, recorder, metrics)
    return metrics


def _pick(training: Training[FinetuneConfig], recorder: RunRecorder) -> None:
    """Take the best epoch's weights; where no epoch was trained, the solved head is all there is."""
    if recorder.history.rows:
        state = load_checkpoint(recorder.checkpoints.best)["state_dict"]
        try:
            training.module.load_state_dict(state)
        except (RuntimeError, TypeError, AttributeError) as error:  # other names, shapes, or no tensors
            raise foreign_checkpoint(recorder.checkpoints.best, error) from error


def _finish(run: Path, training: Training[FinetuneConfig], best_epoch: int) -> dict[str, Any]:
    """Do to the weights what the options say; return what came of it, for `metrics.json`.

    Interpolation comes first, then batch-norm statistics, of what had been trained at the epoch that was chosen: a head
    that was solved on a backbone's own statistics is worth nothing on others.
    """
    config, module, data, device = training.config, training.module, training.data, training.device
    results: dict[str, Any] = {}
    if config.interpolate:
        mixed = choose_alpha(module, load_start(run), weights_of(module), data.evaluation_loader("val"), device=device)
        mixed.save(run)
        results["interpolation"] = mixed.to_dict()
    if config.recalibrate_bn:
        starts = accumulate((phase.epochs for phase in training.phases), initial=0)
        begun = [phase for phase, start in zip(training.phases, starts, strict=False) if start <= best_epoch]
        trained = {name for phase in begun if phase.epochs for name in phase.trained(module.group_names())}
        module.train_groups(tuple(trained))
        batches = (normalise(images, data.data_config) for images, _ in data.evaluation_loader("train"))
        results["recalibrated_bn"] = recalibrate_bn(module.to(device), batches, device=device)
    return results


def _measure(
    training: Training[FinetuneConfig], splits: Sequence[str], seconds: float
) -> tuple[dict[str, Any], FittedCalibration, list[Row]]:
    """Calibrate on val, and return what each split tells of the weights; see `measure_splits` and `hold_out`."""
    config, module = training.config, training.module
    outputs = {split: outputs_of_split(module, training.data, split, device=training.device) for split in splits}
    unlike = hold_out(module, outputs, seconds)
    figures, calibration, rows = measure_splits(
        outputs, module.task, module.target_spec, method=config.calibrate, seed=config.seed
    )
    return {**figures, **unlike}, calibration, rows


def _report(run: Path, training: Training[FinetuneConfig], recorder: RunRecorder, metrics: Mapping[str, Any]) -> None:
    """Write curves, history and figures; `metrics.json` last: it marks a complete run."""
    history = recorder.history
    if history.rows:
        charts = history_charts(
            history.rows, training.plan_values, followed_figures(history.rows, metrics),
            chosen=recorder.selection.best_epoch + 1, solved=history.solved,
            val_loss=training.module.task.epochs.val_loss,
        )  # fmt: skip
        save_charts(charts, run / "curves.png")
    history.write()
    write_metrics(run, metrics)
