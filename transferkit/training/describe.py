"""What a run writes about itself: before training what will happen, afterwards what came of it."""

from __future__ import annotations

import dataclasses
import json
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from transferkit.core.csv import csv_text
from transferkit.core.errors import CheckpointError, TransferkitWarning, gather
from transferkit.core.files import atomic_write, write_json
from transferkit.data.batches.datamodule import ImageData
from transferkit.data.batches.samplers import EpochSampler
from transferkit.data.index.index import ImageIndex
from transferkit.machine.device import device_of
from transferkit.machine.precision import Machine
from transferkit.models.artifact import save_model, versions
from transferkit.models.module import TransferModule
from transferkit.options.training import FinetuneConfig, TrainingOptions
from transferkit.runs.measure import Outputs, measure_splits, network_outputs, write_predictions
from transferkit.show.plots import plot_history
from transferkit.training.finishing import finish_weights, measure_snapshots
from transferkit.training.loop.checkpoints import load_checkpoint, newest_checkpoint
from transferkit.training.loop.early_stop import BEFORE_TRAINING
from transferkit.training.loop.recorder import RunRecorder
from transferkit.training.plan.options import NOT_SAVED, PATHS, absolute
from transferkit.training.plan.phases import Phase, Plan

__all__ = [
    "describe_config",
    "describe_data",
    "describe_run",
    "device_name",
    "make_plan",
    "plan_values",
    "resume_point",
    "write_results",
]


def describe_run(
    run: Path, config: FinetuneConfig, data: ImageData, module: TransferModule, phases: tuple[Phase, ...]
) -> None:
    """Write what is about to happen: `config.yaml`, `data.json`, `plan.json`."""
    describe_config(run, config.to_dict())
    describe_data(run, data.index, skip_bad=config.skip_bad)
    write_json(run / "plan.json", plan_values(make_plan(config, data, module, phases), module))


def make_plan(config: TrainingOptions, data: ImageData, module: TransferModule, phases: tuple[Phase, ...]) -> Plan:
    """Return the phases over the module's groups and the epoch's length in optimizer steps."""
    processes = config.devices * config.num_nodes
    share = EpochSampler(
        len(data.index.split("train")), batch_size=data.batch_size, seed=config.seed, world_size=processes
    )
    batches = math.ceil(len(share) / data.batch_size)
    return Plan(phases, module.group_names(), math.ceil(batches / config.accumulate))


def plan_values(plan: Plan, module: TransferModule) -> dict[str, Any]:
    """Return a plan as `plan.json` holds it."""
    sizes = {name: sum(parameter.numel() for _, parameter in members) for name, members in module.groups()}
    samples = sorted({round(number * (plan.steps - 1) / 200) for number in range(201)}) if plan.steps else []
    return {
        "steps_per_epoch": plan.steps_per_epoch,
        "epochs": plan.epochs,
        "groups": [{"name": name, "parameters": size} for name, size in sizes.items()],
        "phases": [
            {
                **phase.to_dict(),
                "first_epoch": plan.first_epoch(number),
                "groups": list(phase.trained(plan.group_names)),
                "trainable_parameters": sum(sizes[name] for name in phase.trained(plan.group_names)),
                "peak_lr": {name: phase.lr * plan.scale(number, name) for name in plan.group_names},
            }
            for number, phase in enumerate(plan.phases)
        ],
        "lr": {"step": samples, **{name: [plan.lr(name, step) for step in samples] for name in plan.group_names}},
    }


def describe_config(run: Path, options: Mapping[str, Any]) -> None:
    """Write `config.yaml`: what to run, without where and how; paths absolute, so that it repeats the run elsewhere."""
    values = {key: value for key, value in options.items() if key not in NOT_SAVED}
    for key in PATHS:
        if key in values:
            values[key] = absolute(values[key])
    atomic_write(run / "config.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def describe_data(run: Path, index: ImageIndex, *, skip_bad: bool) -> None:
    """Write `data.json` and `pictures.csv`, and `bad_files.csv` where files were left out."""
    write_json(
        run / "data.json",
        {
            "classes": list(index.class_names),
            "counts": index.counts(),
            "digest": index.digest(),
            "skipped": [{"path": file.path, "reason": file.reason} for file in index.skipped],
            "notes": list(index.notes),
        },
    )
    pictures = (
        (record.split, record.label, str(Path(record.path).absolute()), record.sha256) for record in index.records
    )
    atomic_write(run / "pictures.csv", csv_text([("split", "label", "path", "sha256"), *pictures]))
    if skip_bad and index.skipped:
        rows = ((file.path, file.reason) for file in index.skipped)
        atomic_write(run / "bad_files.csv", csv_text([("path", "reason"), *rows]))


def resume_point(run: Path, data: ImageData) -> Path:
    """Return the checkpoint to go on from, after making sure that it is of the same data."""
    path, damaged = newest_checkpoint(run / "checkpoints")
    for problem in damaged:
        warnings.warn(f"{problem}; going on from {path.name}", TransferkitWarning, stacklevel=2)
    load_checkpoint(path)
    before = _read_json(run / "data.json")
    problems = []
    if before["classes"] != list(data.class_names):
        problems.append(f"classes were {before['classes']}, are now {list(data.class_names)}")
    elif before["digest"] != data.index.digest():
        problems.append(f"pictures were {_totals(before['counts'])}, are now {_totals(data.index.counts())}, or others")
    if problems:
        raise CheckpointError(f"{run}: the data changed since the run began: {gather(problems)} - give another --out")
    return path


def write_results(
    run: Path,
    config: FinetuneConfig,
    machine: Machine,
    data: ImageData,
    module: TransferModule,
    recorder: RunRecorder,
    measured_splits: Sequence[str],
) -> dict[str, Any]:
    """Take the best epoch's weights, measure them, write the product; `metrics.json` last: it marks a complete run."""
    history, selection = recorder.history, recorder.selection
    if history.rows:  # else the solved head is all there is, and the module has it
        module.load_state_dict(load_checkpoint(recorder.checkpoints.best)["state_dict"])
    started = time.perf_counter()
    device = device_of(machine.accelerator)
    told = finish_weights(run, config, data, module, recorder.schedule.phases, device)
    outputs: dict[str, Outputs] = {}
    for split in measured_splits:
        if data.index.split(split):
            answers, targets = network_outputs(module, data.evaluation_loader(split), device=device)
            outputs[split] = Outputs(
                tuple(str(Path(record.path).absolute()) for record in data.index.split(split)), answers, targets
            )
    measured, calibration, rows = measure_splits(
        outputs, module.task, module.target_spec, method=config.calibrate, seed=config.seed
    )
    if config.snapshots:
        told["snapshots"] = measure_snapshots(run, config, data, module, device, splits=measured_splits)
    save_model(run, module.cpu(), calibration=calibration)
    write_predictions(run / "predictions.csv", module.task, rows)
    if history.rows:
        plan = _read_json(run / "plan.json")
        plot_history(history.rows, plan, run / "curves.png", best_epoch=selection.best_epoch, solved=history.solved)
    history.write()
    phases: list[dict[str, Any]] = [] if history.solved is None else [{"epochs": 0, **history.solved}]
    for name in dict.fromkeys(str(row["phase"]) for row in history.rows):
        epochs = [row for row in history.rows if row["phase"] == name]
        final = {key: epochs[-1].get(key) for key in ("train_loss", "train_acc", "val_loss", "val_acc", "images_per_s")}
        phases.append({"name": name, "epochs": len(epochs), "time_s": history.phase_seconds[name], **final})
    metrics = {
        **measured,
        "selection": _selection(recorder, tested="test" in outputs),
        **told,
        "phases": phases,
        "time_s": sum(history.phase_seconds.values()) + time.perf_counter() - started,
        "environment": {**versions(), "device": device_name(device), **dataclasses.asdict(machine)},
    }
    write_json(run / "metrics.json", metrics)
    return metrics


def _selection(recorder: RunRecorder, *, tested: bool) -> dict[str, Any]:
    """Say what was chosen on which split, for whoever reads the figures of that split."""
    unseen = "; test was not looked at before" if tested else ""
    if not recorder.history.rows:
        note = f"nothing was chosen on val: the regularisation was cross-validated inside train{unseen}"
        return {"monitor": None, "epoch": None, "note": note, "stopped_early": False}
    chosen_by = recorder.selection
    before = chosen_by.best_epoch == BEFORE_TRAINING
    on_val = chosen_by.monitor.startswith("val")
    chosen = (
        "the epoch was chosen on val, so val is optimistic" if on_val else "the epoch was chosen by the training loss"
    )
    return {
        "monitor": chosen_by.monitor,
        "epoch": None if before else chosen_by.best_epoch,
        "kept": "the solved probe" if before else f"epoch {chosen_by.best_epoch}",
        "note": chosen + unseen,
        "stopped_early": chosen_by.stopped_early,
    }


def device_name(device: str) -> str:
    """Return the name of a device for `metrics.json`."""
    return torch.cuda.get_device_name() if device == "cuda" else f"{device}, {torch.get_num_threads()} threads"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}) - start anew with --overwrite") from error


def _totals(counts: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    return {split: sum(by_class.values()) for split, by_class in counts.items()}
