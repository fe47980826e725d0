"""The `probe` verb: a classifier on cached features, measured, drawn and written down as a run directory."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from transferkit.core.errors import ConfigError, DataError, gather
from transferkit.core.records import DataConfig
from transferkit.data.batches.statistics import ranged
from transferkit.data.index.targets import ClassReader
from transferkit.features.engine.taps import ALL, OWN, POOLED, Tap, find_taps
from transferkit.features.extract.extract import extract_table, frozen_backbone
from transferkit.features.extract.table import FeatureTable
from transferkit.features.probe.classifier_file import keep_classifier
from transferkit.features.probe.curves import depth_curve, learning_curve
from transferkit.features.probe.estimators import build_estimator
from transferkit.features.probe.probe import FittedProbe
from transferkit.machine.device import choose_accelerator, device_of
from transferkit.models.artifact import save_model
from transferkit.models.backbones.registry import Backbone
from transferkit.models.heads.neighbour import KNN, NeighbourHead
from transferkit.models.heads.solver import LabelledRows, ProbeOptions, Solution, Solver
from transferkit.models.module import TransferModule
from transferkit.models.parts import FittedCalibration
from transferkit.models.task import Task, task_of
from transferkit.models.unlike.distance import sample_places
from transferkit.models.unlike.statistics import groups_of
from transferkit.options.features import ProbeConfig
from transferkit.runs.curves import depth_chart, label_chart, path_charts
from transferkit.runs.directory import named_run_dir, open_run_dir, prepare_run_dir
from transferkit.runs.files import CHOSEN, RunFiles, followed_figures
from transferkit.runs.measure import Outputs, Row, measure_splits, write_predictions
from transferkit.runs.summary import print_probe
from transferkit.runs.write import environment, write_config, write_data, write_metrics
from transferkit.show.charts import save_charts
from transferkit.show.progress import counting_bar, progress_console
from transferkit.training.adding import Base
from transferkit.training.head.features import row_groups, training_rows
from transferkit.training.unlike import fit_on_features, hold_out

__all__ = ["run_probe"]


def run_probe(config: ProbeConfig) -> Path:
    """Extract what the store has not, fit the classifier, and write the run directory.

    Args:
        config: The options.

    Returns:
        The run directory: `config.yaml`, `data.json`, `metrics.json`, plots and, where the classifier can be written as
        a head, `model.safetensors` and `model.json`.

    Raises:
        ConfigError: An option does not fit the backbone, the data or the classifier.
        TransferkitError: As `extract_features` says; CheckpointError for a run directory that is taken.
    """
    base = None if config.to is None else Base.of(Path(config.to))
    if base is not None:
        config = base.config(config)
    with named_run_dir(config.out, config.data, f"{config.backbone}-probe") as run:
        return _probe(config, run, base)


def _probe(config: ProbeConfig, run: Path, base: Base | None) -> Path:
    started = time.perf_counter()
    task = task_of(config)
    config = ranged(config, task.targets)
    task.require("solver", "probe")
    if task.head_kinds.feed("linear").on_pixels:
        raise ConfigError(
            f"probe fits a classifier on one vector per picture, and {task.name} answers for pixels - "
            "run finetune --phases probe, which solves its linear head"
        )
    prepare_run_dir(run, resume=False, overwrite=config.overwrite)
    console = progress_console(config.quiet)
    weight = None if config.class_weight == "none" else config.class_weight
    arguments = config.classifier_args or {}
    if "." in config.classifier:  # a wrong name or argument is an error now, not after the features
        build_estimator(config.classifier, arguments, class_weight=weight, seed=config.seed)
    backbone = frozen_backbone(config.backbone, config.weights, config.size, config.seed, config.channels).backbone
    (tap,) = find_taps(backbone, config.layer, config.pool)
    layers = dataclasses.replace(config, layer=ALL) if config.depth else config
    with counting_bar(console, "extracting features") as progress:
        reader = None if base is None else ClassReader(base.statistics.names)
        table = extract_table(layers, reader=reader, indexing=progress, extracting=progress)
    extracted = time.perf_counter()
    train = table.split("train")
    if base is not None:
        base.check(table)
        base.warn_of_seen(table)
    task = task.of(table.index.targets.spec)
    solver: Solver = task.require("solver", "probe")
    if base is None and (problems := solver.problems(train.y)):
        raise DataError(f"{config.data}: the training split holds {gather(problems)}")
    held = next((split for split in ("val", "test") if len(table.split(split))), None)
    if held is None and (config.depth or config.learning_curve):
        raise ConfigError("--depth and --learning-curve need pictures to measure on - pass a --val-split above 0")

    options = ProbeOptions(config.classifier, arguments, weight, config.folds)
    with counting_bar(console, "fitting") as progress:
        rows = training_rows(train, tap.layer, config.use_views)
        probe: Solution = (
            solver.fit(rows, options, seed=config.seed, progress=progress) if base is None else base.fit(rows, train)
        )
    solved = time.perf_counter()
    module, exported = _module(task, probe, table, backbone, tap)
    # With pictures added to a run's own, only the new ones are here: the model would take the old ones for unlike.
    known = module if base is None else None
    measured, calibration, lines = _measure(task, probe, table, tap.layer, config, known)
    extra: dict[str, Any] = {}
    with counting_bar(console, "fitting curves") as progress:
        if config.depth and held is not None:
            extra["depth"] = depth_curve(
                {layer: _layer_rows(train, layer, grouped=True) for layer in train.layers},
                {layer: _layer_rows(table.split(held), layer) for layer in train.layers},
                solver, options, seed=config.seed, progress=progress,
            )  # fmt: skip
        if config.learning_curve and held is not None:
            extra["learning_curve"] = learning_curve(
                _layer_rows(train, tap.layer, grouped=True), _layer_rows(table.split(held), tap.layer), solver,
                options, seed=config.seed, progress=progress,
            )  # fmt: skip

    with open_run_dir(run, resume=False, overwrite=config.overwrite):
        added = {} if base is None else {"data": "", "add": config.data, "to": str(base.run)}
        write_config(run, {**dataclasses.asdict(config), **added})
        earlier = RunFiles(base.run).pictures if base is not None else ()
        write_data(run, table.index, skip_bad=config.skip_bad, earlier=earlier)
        figure = followed_figures([{f"val_{solver.figure}": None}], measured)[-1]
        name = next((name for name in CHOSEN if name in probe.choice), None)
        if "curve" in probe.choice and name is not None:
            save_charts(path_charts(probe.choice["curve"], name, probe.choice[name]), run / "path.png")
        if "depth" in extra:
            save_charts([depth_chart(extra["depth"], str(held), figure)], run / "depth.png")
        if "learning_curve" in extra:
            save_charts([label_chart(extra["learning_curve"], str(held), figure)], run / "learning_curve.png")
        state = probe.head()
        if module is not None and state is not None:
            prepared = DataConfig.from_dict(table.facts["data_config"])
            save_model(
                run, module, head=state.name, head_args=dict(state.arguments), calibration=calibration,
                preprocessing=prepared,
            )  # fmt: skip
        file = {}
        if exported != "yes" and probe.estimator is not None:
            file = {"kept": keep_classifier(run, probe.estimator, table.class_names)}
        if isinstance(probe, FittedProbe) and probe.statistics is not None:
            facts = {**table.facts, "strength": probe.choice["strength"]}
            dataclasses.replace(probe.statistics, names=table.class_names).save(run, facts)
        write_predictions(run / "predictions.csv", task, lines)
        learnt = float(probe.scores(train.layers[tap.layer], train.y).mean())
        metrics = {
            **measured,
            "selection": {
                "monitor": None,
                "epoch": None,
                "note": "what had to be chosen was cross-validated inside train; val and test were not looked at",
            },
            "probe": {"classifier": probe.name, "layer": tap.layer, "pool": tap.pool, "exported": exported,
                      **({} if base is None else base.facts_of(table)),
                      "views": config.use_views if config.views else None, **file, **probe.choice},
            "phases": [{"name": "probe", "epochs": 0, f"train_{solver.figure}": learnt,
                        f"val_{solver.figure}": measured.get("val", {}).get(solver.figure),
                        "time_s": solved - extracted}],
            "features": {**table.facts, "time_s": extracted - started},
            **extra,
            "time_s": time.perf_counter() - started,
            "environment": environment(device_of(choose_accelerator(config.accelerator))),
        }  # fmt: skip
        write_metrics(run, metrics)
    if not config.quiet:
        print_probe(run)
    return run


def _measure(
    task: Task, probe: Solution, table: FeatureTable, layer: str, config: ProbeConfig, module: TransferModule | None
) -> tuple[dict[str, Any], FittedCalibration, list[Row]]:
    """Calibrate and measure; the module gets the distance from the training pictures, from the same features."""
    outputs, started = {}, time.perf_counter()
    if module is not None:
        train = table.split("train")
        fit_on_features(module, train.layers[layer], groups_of(train.y, classes=task.output.names_one))
    for name in ("val", "test"):
        split = table.split(name)
        if len(split):
            paths = tuple(str(Path(path).absolute()) for path in split.paths)
            answers = torch.from_numpy(probe.outputs(split.layers[layer]))
            outputs[name] = Outputs(paths, answers, torch.from_numpy(split.y))
            if name == "val" and module is not None and module.unlike is not None:
                held = torch.from_numpy(split.layers[layer])
                outputs[name] = replace(
                    outputs[name], distances=module.unlike(held), features=held[sample_places(len(held))]
                )
    unlike = {} if module is None else hold_out(module, outputs, time.perf_counter() - started)
    figures, calibration, rows = measure_splits(
        outputs, task, table.index.targets.spec, method=config.calibrate, seed=config.seed
    )
    return {**figures, **unlike}, calibration, rows


def _layer_rows(table: FeatureTable, layer: str, *, grouped: bool = False) -> LabelledRows:
    """Return the evaluation views of a table, with what must stay together where `grouped`."""
    return LabelledRows(table.layers[layer], table.y, len(table.class_names), row_groups(table) if grouped else None)


def _module(
    task: Task, probe: Solution, table: FeatureTable, backbone: Backbone, tap: Tap
) -> tuple[TransferModule | None, str]:
    """Return the product, backbone and head, and ``"yes"``; or none, and why the classifier cannot be one."""
    if tap.layer != POOLED or tap.pool != OWN:
        return None, f"no: a head stands on the penultimate features, not on {tap.layer} ({tap.pool})"
    state = probe.head()
    if state is None:
        return None, f"no: {probe.name} is not linear - use it in a pipeline behind transferkit.FeatureExtractor"
    spec = table.index.targets.spec
    width, arguments = task.heads.width(spec), dict(state.arguments)
    head = NeighbourHead(backbone.num_features, width, **arguments) if state.name == KNN else state.name
    module = TransferModule(backbone, width, head, class_names=spec.names, task=task, target_facts=spec.facts)
    module.head.load_state_dict(state.tensors)
    return module, "yes"
