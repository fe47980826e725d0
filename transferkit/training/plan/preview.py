"""`plan`: what a training would do, before any of it is done."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from transferkit.core.files import storage_errors
from transferkit.data.augment.normalise import normalise
from transferkit.features.store.store import FeatureStore
from transferkit.models.freezing import frozen_modules
from transferkit.models.tuning.layout import layout_of, norm_layers, train_parts
from transferkit.models.unlike.distance import LEAST
from transferkit.models.unlike.statistics import MOST
from transferkit.options.training import AUTO, TrainingOptions
from transferkit.runs.curves import rates_chart
from transferkit.runs.directory import run_stem
from transferkit.runs.write import write_plan
from transferkit.show.charts import save_charts
from transferkit.show.progress import output_console, waiting
from transferkit.show.words import duration
from transferkit.training.batch_size import with_batch_size
from transferkit.training.compiling import choose_compile
from transferkit.training.head.solve import solve_probe, views_fitted
from transferkit.training.lr.start import phase_start
from transferkit.training.plan.forecast import Forecast, forecast
from transferkit.training.plan.sizes import size_words
from transferkit.training.plan.surgical import propose_groups, relative_gradient_norms
from transferkit.training.setup import Options, Training, prepare

__all__ = ["plan_directory", "print_plan", "write_preview"]

RGN_BATCHES = 8
"""Batches that relative gradient norms are measured on."""


def write_preview(
    config: TrainingOptions, *, out: str | None = None, rgn: bool = False, quiet: bool = False
) -> tuple[Path, dict[str, Any]]:
    """Say what `finetune` with these options would do; nothing is trained and no run directory is made.

    Args:
        config: The options.
        out: Directory for ``plan.json`` and ``plan.png``; see `plan_directory`.
        rgn: Also propose which groups to tune.
        quiet: No progress, no table.

    Returns:
        The directory, and the plan as it stands in ``plan.json``.

    Raises:
        ConfigError: An option is out of range, or the phases do not fit the model.
        DataError: Pictures are missing, unreadable or contradictory.
        BackboneError: The backbone is unknown, or its weights cannot be had or do not fit.
        StorageError: The directory cannot be written to.
    """
    training = with_batch_size(prepare(config, quiet=quiet))
    values = training.plan_values
    with waiting(training.console, "timing a few steps of each phase"):
        norms = _frozen_norms(training)
        if rgn:
            values["rgn"] = _gradient_norms(training)
        measured = forecast(training)
    values["batch_size"] = training.data.batch_size
    values["rows"] = "windows" if training.data.data_config.tiled else "pictures"
    values["lr_found"] = "at the start of the run, by a range test" if config.lr == AUTO else None
    values["unlike_training"] = _unlike(training)
    chosen = choose_compile(training, measure=False)
    values["steps"] |= {"compile": "on" if chosen.on else "off", "compile_reason": chosen.reason}
    _predict(values, training, measured, norms)
    directory = plan_directory(config, out)
    with storage_errors("create", directory):
        directory.mkdir(parents=True, exist_ok=True)
    write_plan(directory, values)
    rates = rates_chart(values)
    if rates is not None:
        save_charts([rates], directory / "plan.png")
    if not quiet:
        print_plan(values, directory)
    return directory, values


def plan_directory(config: TrainingOptions, out: str | None) -> Path:
    """Return where a plan is written to; by default ``runs/<data>-<backbone>-plan``."""
    return Path(out) if out is not None else Path("runs") / f"{run_stem(config.data, config.backbone)}-plan"


def print_plan(values: Mapping[str, Any], directory: Path, *, console: Console | None = None) -> None:
    """Print a plan on standard output.

    Args:
        values: The content of ``plan.json``.
        directory: Where it lies.
        console: Where to print.
    """
    console = console or output_console()
    table = Table(title="phases", title_justify="left", title_style="bold")
    for column in ("phase", "epochs", "steps", "trains", "norms frozen", "time", "memory"):
        table.add_column(column, justify="left" if column == "phase" else "right", no_wrap=column == "phase")
    for phase in values["phases"]:
        table.add_row(
            phase["name"], str(phase["epochs"] or "solved"), f"{phase['steps']:,}",
            _short(phase["trainable_parameters"]), f"{phase['frozen_norms']}/{values['norms']}",
            duration(phase["time_s"]), f"{phase['memory'] / 1e9:.2f} GB",
        )  # fmt: skip
    console.print(table)
    trained = [phase for phase in values["phases"] if phase["epochs"]]
    rates = Table(title="learning rates; other groups are frozen", title_justify="left", title_style="bold")
    for column in ("phase", "group", "trained", "start", "peak", "end"):
        rates.add_column(column, justify="left" if column in ("phase", "group") else "right", no_wrap=True)
    for phase in trained:
        for number, (group, course) in enumerate(phase["lr_course"].items()):
            shown = "" if number else phase["name"]
            last = number + 1 == len(phase["lr_course"])
            rates.add_row(
                shown, group, _short(phase["trained"][group]), *(f"{lr:.2g}" for lr in course), end_section=last
            )
    if trained:
        console.print(rates)
    if values["lr_found"] is not None:
        console.print(f"lr       looked for {values['lr_found']}; the figures above are for {trained[-1]['lr']:g}")
    if "rgn" in values:
        norms = ", ".join(f"{name} {norm:.2g}" for name, norm in values["rgn"]["norms"].items())
        console.print(f"rgn      {norms}", soft_wrap=True)
        console.print(f"propose  train: [{', '.join(values['rgn']['proposed'])}]", soft_wrap=True)
    console.print(f"batch    {values['batch_size']} {values['rows']}, {values['steps_per_epoch']:,} steps per epoch")
    sizes = values["train_sizes"]
    if len(set(sizes)) > 1:
        console.print(f"sizes    {size_words(sizes, sizes[-1])}", soft_wrap=True)
    steps = values["steps"]
    if trained:
        console.print(f"steps    {steps['precision']}, {steps['memory_format']}: {steps['reason']}", soft_wrap=True)
        console.print(f"compile  {steps['compile']}: {steps['compile_reason']}", soft_wrap=True)
    console.print(f"unlike   {values['unlike_training']['kept']}", soft_wrap=True)
    console.print(f"time     about {duration(values['time_s'])}, evaluation included")
    console.print(f"plan     {directory / 'plan.json'}", soft_wrap=True)
    if trained:
        console.print(f"plot     {directory / 'plan.png'}", soft_wrap=True)


# ---- parts ------------------------------------------------------------------------------------------------------


def _short(count: int) -> str:
    """Return a number of parameters in the unit a person would use."""
    return f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count / 1e3:.1f} k"


def _frozen_norms(training: Training[Options]) -> list[int]:
    """Return how many norm layers are frozen in each phase."""
    module, counts = training.module, []
    for phase in training.phases:
        train_parts(module, phase.parts(layout_of(module)))
        frozen = {id(inner) for part in frozen_modules(module) for inner in part.modules()}
        counts.append(sum(id(layer) in frozen for layer in norm_layers(module)))
    return counts


def _gradient_norms(training: Training[Options]) -> dict[str, Any]:
    """Return the relative gradient norm of every group, from a converged head, and the groups to tune."""
    module, data = training.module, training.data
    wider = next((phase for phase in training.phases if not phase.head_alone), training.phases[-1])
    solved = None
    if training.phases[0].solve:
        config = training.config
        solved = solve_probe(module, data, FeatureStore(config.store), training.compute, seed=config.seed)
    phase_start(training, wider, solved)
    batches = itertools.islice(iter(data.train_dataloader()), RGN_BATCHES)
    norms = relative_gradient_norms(module, [(normalise(images, data.data_config), y) for images, y in batches])
    return {"norms": norms, "proposed": list(propose_groups(norms, module.group_names()))}


def _unlike(training: Training[Options]) -> dict[str, Any]:
    """Return of how many training pictures statistics will be taken, and what the model keeps of them, in words."""
    index = training.data.index
    train, val = len(index.split("train")), len(index.split("val"))
    if training.module.feed.on_pixels:
        return {"pictures": 0, "kept": "nothing of the training pictures is kept: the head takes maps, not features"}
    if val < LEAST:
        text = f"nothing of the training pictures is kept: there are {val} val pictures, and {LEAST} are needed"
        return {"pictures": 0, "kept": text}
    count = min(MOST, train)
    text = (
        f"means and covariance of the features of {count:,} training pictures are kept: `unlike_training` of predict "
        f"is the share of the {val:,} val pictures that are nearer to them"
    )
    return {"pictures": count, "kept": text}


def _predict(values: dict[str, Any], training: Training[Options], measured: Forecast, norms: list[int]) -> None:
    """Add to each phase what it will take, and what its LRs are."""
    plan, size, accumulate = training.plan, training.data.batch_size, training.config.accumulate
    counts = {split: training.data.rows(split) for split in ("train", "val", "test")}
    evaluation = measured.evaluation_s * counts["val"] / size
    values["norms"] = len(norm_layers(training.module))
    sizes = values["train_sizes"]
    trained = training.data.train_sizes.sides
    timed = trained[-1] if trained else max(training.module.data_config.image_size)  # steps were timed at the last
    for number, phase in enumerate(values["phases"]):
        steps = phase["epochs"] * plan.steps_per_epoch
        sides = values["train_sizes"][phase["first_epoch"] : phase["first_epoch"] + phase["epochs"]]
        scale = sum((side / timed) ** 2 for side in sides) / len(sides) if sides and len(set(sizes)) > 1 else 1.0
        first = phase["first_epoch"] * plan.steps_per_epoch
        batches = steps * accumulate
        extra = phase["epochs"] * evaluation
        if not phase["epochs"]:
            views = views_fitted(training.module, training.data, training.config.probe_views)
            batches, extra = (views + counts["val"]) / size, 0.0
        course = [plan.lrs(first + step) for step in range(steps)]
        phase |= {
            "steps": steps,
            "frozen_norms": norms[number],
            "step_s": measured.step_s[number] * (accumulate if phase["epochs"] else 1),
            "time_s": measured.step_s[number] * batches * scale + extra,
            "memory": measured.memory[number],
            "lr_course": {name: [course[0][name], max(lrs[name] for lrs in course), course[-1][name]]
                          for name in phase["trained"]} if course else {},
        }  # fmt: skip
    final = measured.evaluation_s * (counts["val"] + counts["test"] + values["unlike_training"]["pictures"]) / size
    values["time_s"] = sum(phase["time_s"] for phase in values["phases"]) + final
