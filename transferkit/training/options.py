"""From options to a configuration and its phases; for a resume, what may differ and what may not."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from transferkit.config import FinetuneConfig, make_config
from transferkit.errors import CheckpointError, ConfigError, TransferkitWarning, gather
from transferkit.training.phases import Phase, check_phases, make_phases, preset_phases
from transferkit.training.schedules import Constant, Cosine, Schedule, make_schedule

__all__ = ["NOT_SAVED", "absolute", "resolve_options", "resolve_phases"]

RESUMABLE = frozenset({"accelerator", "batch_size", "devices", "out", "overwrite", "quiet", "resume", "workers"})
"""What may differ between a run and its resume: where it computes, not what."""

NOT_SAVED = frozenset({"out", "overwrite", "quiet", "resume", "store"})
"""What says where and how to run, not what: left out of `config.yaml`, so that it repeats the run elsewhere."""

PATHS = ("data", "weights", "init_from")

PROBE_EPOCHS, PROBE_LR = 3, 1e-2
"""Of a probe that is trained, unless told otherwise."""


def resolve_options(options: Mapping[str, Any]) -> FinetuneConfig:
    """Check the options; for a resume, take the run's own and refuse what would make it another run.

    Raises:
        ConfigError: An option is unknown or out of range.
        CheckpointError: A resume with options that the run was not started with.
    """
    out = options.get("out")
    if not (options.get("resume") and out and (Path(out) / "config.yaml").is_file()):
        config = make_config(FinetuneConfig, {"data": "-", **options} if options.get("resume") else options)
        resolve_phases(config, None)  # everything that can be told without the model
        return config
    path = Path(out) / "config.yaml"
    try:
        saved = yaml.safe_load(path.read_text())
        original = make_config(FinetuneConfig, {**saved, "out": out, "resume": True})
    except (yaml.YAMLError, TypeError, OSError, ConfigError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}) - start anew with --overwrite") from error
    wanted = make_config(FinetuneConfig, {**saved, **options})
    differences = []
    for key in options:
        before, now = getattr(original, key), getattr(wanted, key)
        if key in PATHS:
            before, now = absolute(before), absolute(now)
        if key == "phases" and isinstance(now, str):
            continue  # the run holds the preset's phases, spelled out
        if before == now or (key == "precision" and now == "auto") or key in NOT_SAVED:
            continue
        if key in RESUMABLE:
            message = f"resuming with {key} {now!r} instead of {before!r}: the result can differ from one run"
            warnings.warn(message, TransferkitWarning, stacklevel=3)
        else:
            differences.append(f"{key} was {before!r}, is now {now!r}")
    if differences:
        raise CheckpointError(f"{out}: cannot resume with other options: {gather(differences)} - give another --out")
    return dataclasses.replace(wanted, phases=original.phases, precision=original.precision)


def resolve_phases(config: FinetuneConfig, group_names: Sequence[str] | None) -> tuple[Phase, ...]:
    """Return the phases of a configuration, checked.

    Args:
        config: The options.
        group_names: The model's groups; ``None`` to check only what can be told without a model.

    Raises:
        ConfigError: With everything that is wrong.
    """
    if isinstance(config.phases, str):
        phases = preset_phases(
            config.phases,
            epochs=config.epochs,
            probe_epochs=config.probe_epochs or PROBE_EPOCHS,
            lr=config.lr,
            probe_lr=config.probe_lr or PROBE_LR,
            schedule=_schedule(config),
            layer_decay=config.layer_decay,
            group_names=group_names or ("backbone", "head"),
            solve=config.solves_probe,
        )
    else:
        phases = make_phases(config.phases)
    problems = check_phases(phases, group_names)
    if any(phase.solve for phase in phases) and config.head != "linear":
        problems.append(f"a phase with solve fits a linear head, not {config.head!r} - train it for epochs instead")
    if problems:
        raise ConfigError(gather(problems))
    return phases


def absolute(value: str | None) -> str | None:
    """Make an existing path absolute, so that a recipe works from anywhere; leave names alone."""
    return str(Path(value).absolute()) if value is not None and Path(value).exists() else value


def _schedule(config: FinetuneConfig) -> Schedule:
    schedule = make_schedule(config.schedule)
    if isinstance(config.schedule, str) and isinstance(schedule, Cosine | Constant):
        return dataclasses.replace(schedule, warmup_epochs=config.warmup_epochs)
    return schedule
