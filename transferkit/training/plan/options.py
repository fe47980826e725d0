"""From options to a configuration and its phases; for a resume, what may differ and what may not."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transferkit.core.errors import CheckpointError, ConfigError, TransferkitWarning, did_you_mean, gather
from transferkit.core.records import DataConfig
from transferkit.core.targets import TargetSpec
from transferkit.models.heads.registry import head_hint
from transferkit.models.task import Task, task_of
from transferkit.models.tuning.adapters import Adapter
from transferkit.models.tuning.selectors import ADAPTER, ALL, Groups, Layout, as_layout, parse_selector
from transferkit.options.fields import make_config
from transferkit.options.sizes import train_sizes
from transferkit.options.training import AUTO, OF_MEANS, SOLVABLE, FinetuneConfig, TrainingOptions
from transferkit.runs.files import RunFiles
from transferkit.runs.write import NOT_SAVED, PATHS, absolute
from transferkit.training.plan.phases import HEAD, Phase, check_phases, make_phases, preset_phases, snapshot_problems
from transferkit.training.schedules.schedules import Cosine, Schedule, make_schedule

__all__ = ["adapter_of", "lacks_solver", "monitor_of", "replace_lr", "resolve_options", "resolve_phases", "usual_lr"]

RESUMABLE = frozenset({"accelerator", "batch_size", "devices", "num_nodes", "out", "overwrite", "quiet", "resume",
                       "strategy", "workers"})  # fmt: skip
"""What may differ between a run and its resume: where it computes, not what."""

CHOSEN = ("precision", "memory_format", "compile", "lr", "batch_size", "batch_norm", "head", "augment_on")
"""What a run chooses where it is not named; a resume takes what was chosen."""

USUAL_GAMMA = FinetuneConfig.focal_gamma

PROBE_EPOCHS = 3
"""Of a probe that is trained, by default."""

FIXRES_LR = 0.1
"""LR of the head in the last phase of FixRes over that of the phases before: it has converged, but for the size."""


def resolve_options(options: Mapping[str, Any]) -> FinetuneConfig:
    """Check the options; for a resume, take the run's own and refuse what would make it another run.

    Raises:
        ConfigError: An option is unknown or out of range.
        CheckpointError: A resume with options that the run was not started with.
    """
    out = options.get("out")
    if not (options.get("resume") and out and (Path(out) / "config.yaml").is_file()):
        config = make_config(FinetuneConfig, {"data": "-", **options} if options.get("resume") else options)
        resolve_phases(config, None)  # as far as the model does not matter
        return config
    path = Path(out) / "config.yaml"
    saved = RunFiles(Path(out)).config
    try:
        original = make_config(FinetuneConfig, {**saved, "out": out, "resume": True})
    except (TypeError, ConfigError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}) - start anew with --overwrite") from error
    config = make_config(FinetuneConfig, {**saved, **options})
    differences = []
    for key in options:
        before, now = getattr(original, key), getattr(config, key)
        if key in PATHS:
            before, now = absolute(before), absolute(now)
        if key == "phases" and isinstance(now, str):
            continue  # the run holds the preset's phases, spelled out
        if before == now or key in NOT_SAVED or (now in (AUTO, None) and key in CHOSEN):
            continue  # the run holds what was chosen
        if key in RESUMABLE:
            message = f"resuming with {key} {now!r} instead of {before!r}: the result can differ from one run"
            warnings.warn(message, TransferkitWarning, stacklevel=3)
        else:
            differences.append(f"{key} was {before!r}, is now {now!r}")
    if differences:
        raise CheckpointError(
            f"{out}: cannot resume with other options: {gather(differences)} - give another --out, with --init-from "
            f"{out} to go on from its weights"
        )
    chosen = {key: getattr(original, key) for key in CHOSEN if key != "batch_size"}
    if config.batch_size in (AUTO, None):
        chosen["batch_size"] = original.batch_size
    return dataclasses.replace(config, phases=original.phases, **chosen)


def resolve_phases(config: TrainingOptions, groups: Groups | None) -> tuple[Phase, ...]:
    """Return the phases of a configuration, checked.

    Args:
        config: The options.
        groups: The model's; ``None`` to check only what does not depend on a model.

    Raises:
        ConfigError: With everything that is wrong.
    """
    task = task_of(config)
    lr = usual_lr(config, task)
    if isinstance(config.phases, str):
        solve = config.solves_probe and not lacks_solver(config)
        epochs = config.probe_epochs or (config.epochs if config.phases == "probe" else PROBE_EPOCHS)
        probe = Phase("probe", 0 if solve else epochs, train=HEAD, lr=config.probe_lr or task.head_kinds.probe_lr,
                      solve=solve)  # fmt: skip
        tuning = Phase(
            "finetune",
            config.epochs,
            train=_tuned(config),
            lr=lr,
            schedule=_schedule(config),
            layer_decay=config.layer_decay,
        )
        phases = preset_phases(config.phases, probe, tuning, as_layout(groups or ("backbone", HEAD)).names)
    else:
        phases = make_phases(config.phases)
    if config.fixres_epochs and not any(phase.test_view for phase in phases):
        # A recipe that a run wrote has the phase spelled out already.
        phases += (Phase("fixres", epochs=config.fixres_epochs, train=HEAD, lr=FIXRES_LR * lr, schedule=Cosine(),
                         test_view=True),)  # fmt: skip
    problems = check_phases(phases, groups) + _adapter_problems(config, phases, groups)
    if any(phase.solve for phase in phases):
        task.require("solver", "a solved phase")
        if config.head not in SOLVABLE:
            problems.append(f"a phase with solve fits a linear head or class means, not {config.head!r} - train "
                         "it for epochs instead")  # fmt: skip
        if config.head in OF_MEANS and not task.output.names_one:
            problems.append(f"--head {config.head} is solved by class means, and a picture has no one class in "
                         f"{task.name} - pass --probe sgd")  # fmt: skip
    problems += _craft_problems(config, phases) + _task_problems(config) + _augment_problems(config, task)
    if problems:
        raise ConfigError(gather(problems))
    return phases


def adapter_of(config: TrainingOptions) -> Adapter | None:
    """Return the adapter that options ask for. Raises `ConfigError`."""
    if config.adapter == "none":
        return None
    alpha = 2.0 * config.adapter_rank if config.adapter_alpha is None else config.adapter_alpha
    return Adapter(config.adapter, config.adapter_rank, alpha, config.adapter_targets)


def _tuned(config: TrainingOptions) -> str:
    """Return what ready-made phases fine-tune."""
    text = config.train or (ALL if config.adapter == "none" else ADAPTER)
    return ALL if text == ALL else f"{HEAD}, {parse_selector(text)}"


def _adapter_problems(config: TrainingOptions, phases: Sequence[Phase], groups: Groups | None) -> list[str]:
    """Return which phases train what an adapter leaves frozen, or that none trains the adapter."""
    if config.adapter == "none":
        return []
    adapter_of(config)  # which says what is wrong with it
    problems: list[str] = []
    if not isinstance(groups, Layout):
        return problems
    for phase in phases:
        frozen = [leaf for leaf in phase.parts(groups) if ".base_layer." in leaf.name and not leaf.kinds]
        if frozen:
            problems.append(f"phase {phase.name!r} trains {frozen[0].library_name} and {len(frozen) - 1} more weights "
                         f"that --adapter {config.adapter} leaves frozen - train 'head, adapter' in it")  # fmt: skip
    if not any(ADAPTER in leaf.kinds for phase in phases for leaf in phase.parts(groups)):
        problems.append(f"--adapter {config.adapter} learns in none of the phases - train 'head, adapter' in one")
    return problems


def lacks_solver(config: TrainingOptions) -> bool:
    """Whether a head that would be solved unasked is trained, because its task has no solver."""
    return config.probe == "auto" and config.solves_probe and task_of(config).solver is None


def usual_lr(config: TrainingOptions, task: Task) -> float:
    """Return the LR of fine-tuning; that of the task's heads where none is named, or it has not been looked for yet."""
    return task.head_kinds.lr if config.lr is None or isinstance(config.lr, str) else config.lr


def monitor_of(config: TrainingOptions) -> str:
    """Return what the best epoch is chosen by, such as ``"val_acc"``."""
    return f"val_{task_of(config).objective.monitor}" if config.monitor == AUTO else config.monitor


def _augment_problems(config: TrainingOptions, task: Task) -> list[str]:
    """Return what is wrong with own steps of augmentation: of themselves, or beside what else is wanted."""
    if isinstance(config.augment, str):
        return []
    from transferkit.data.augment.custom import carried_problems, step_problems  # with albumentations

    problems = step_problems(config.augment)
    if not problems and not task.extent.whole:
        shown = DataConfig(crop_mode="tile") if config.tile else DataConfig()
        problems = carried_problems(config.augment, shown, boxes=not task.targets.tiles)
    return problems


def _task_problems(config: TrainingOptions) -> list[str]:
    """Return which words are none of the task's: of the head, the loss, the figure that chooses the best epoch."""
    task = task_of(config)
    objective, problems = task.objective, []
    for name, word, known, hint in (
        ("head", config.head, task.head_kinds.names(), head_hint),
        ("loss", config.loss, objective.losses, did_you_mean),
        ("monitor", config.monitor, [f"val_{figure}" for figure in objective.monitors], did_you_mean),
    ):
        if word not in (AUTO, *known):
            problems.append(f"--{name} is {word!r}.{hint(word, known)} Expected one of {', '.join(known)}, or auto")
    if config.tile and not task.targets.tiles:
        problems.append(f"--tile cuts pictures into windows with their masks, and answers of {task.name} are none - "
                     "leave it out")  # fmt: skip
    mixing = config.mixup or config.cutmix
    if mixing and task.targets.mixer(TargetSpec(("first", "second")), config.mixup, config.cutmix) is None:
        problems.append(f"--mixup and --cutmix mix answers, and those of {task.name} cannot be mixed - leave them out")
    if config.focal_gamma != USUAL_GAMMA and config.loss != "focal":
        problems.append(f"--focal-gamma is of --loss focal, not {config.loss} - leave it out")
    if config.label_smoothing and objective.smoothing is None:
        problems.append(f"--label-smoothing is {config.label_smoothing}, but {task.name} has none - leave it out")
    for name, value in (("interpolate", config.interpolate), ("snapshots", config.snapshots)):
        if value and not task.extent.whole:
            problems.append(f"--{name} compares whole outputs of several weights, and of {task.name} only counts of "
                         "pixels are held - leave it out")  # fmt: skip
    if isinstance(config, FinetuneConfig) and (problem := task.calibration_problem(config.calibrate)):
        problems.append(problem)
    return problems


def _craft_problems(config: TrainingOptions, phases: Sequence[Phase]) -> list[str]:
    """Return which options cannot be had with these phases."""
    problems = []
    trained = [phase for phase in phases if not phase.solve]
    flags = {
        "--ema": config.ema,
        "--l2-sp": config.l2_sp,
        "--snapshots": config.snapshots,
        "--lr auto": config.lr == AUTO,
        "--fixres-epochs": config.fixres_epochs,
    }
    wider = [phase for phase in phases if not phase.head_alone]
    if not trained:
        needs = "needs a phase that is trained, these are solved - pass --phases probe-finetune or --probe sgd"
        problems += [f"{name} {needs}" for name, value in flags.items() if value]
    if config.interpolate and (phases[0] in wider or not wider):
        problems.append(
            "--interpolate mixes the probe with what was fine-tuned from it, expected a phase of the head alone and "
            "one of more after it - pass --phases probe-finetune"
        )
    if config.snapshots and trained:
        problems += snapshot_problems(phases)
    if config.lr == AUTO and not isinstance(config.phases, str):
        problems.append("--lr auto looks for the LR of ready-made phases, a list of phases holds its own - run lr-find "
                     "--phase NAME and write down what it finds")  # fmt: skip
    sides = train_sizes(config.train_size)
    tuned = [phase for phase in wider or trained if not phase.test_view]
    epochs = sum(phase.epochs for phase in tuned)
    if len(sides) > max(1, epochs):
        problems.append(f"--train-size names {len(sides)} sizes for {epochs} epoch(s), and an epoch has one - name "
                     "fewer, or raise --epochs")  # fmt: skip
    if config.fixres_epochs and config.size is not None and set(sides) == {max(config.size)}:
        problems.append(f"--train-size and --image-size are both {config.image_size}, so there is nothing for "
                     "--fixres-epochs to fix")  # fmt: skip
    return problems


def replace_lr(phases: Sequence[Phase], before: float, lr: float) -> tuple[Phase, ...]:
    """Return the phases with `lr` in place of `before`, ratios between phases kept.

    Phases of the head alone, which have an LR of their own, keep it; the last one of FixRes goes with the others.
    """
    return tuple(
        dataclasses.replace(phase, lr=lr * (phase.lr / before))
        if not phase.solve and (not phase.head_alone or phase.test_view) else phase
        for phase in phases
    )  # fmt: skip


def _schedule(config: TrainingOptions) -> Schedule:
    schedule = make_schedule(config.schedule)
    named = isinstance(config.schedule, str)
    if named and any(field.name == "warmup_epochs" for field in dataclasses.fields(schedule)):
        return make_schedule({**schedule.to_dict(), "warmup_epochs": config.warmup_epochs})
    return schedule
