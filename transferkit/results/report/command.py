"""The exact command that repeats a run: by its recipe, and with every flag spelled out. Pure."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from transferkit.core.errors import TransferkitError
from transferkit.options.features import ProbeConfig
from transferkit.options.fields import REQUIRED, default_of, make_config
from transferkit.options.results import EvaluateConfig
from transferkit.options.training import FinetuneConfig
from transferkit.runs.files import RunFiles
from transferkit.training.plan.options import resolve_phases
from transferkit.training.plan.phases import PRESETS, Phase, make_phases

__all__ = ["changed_options", "group_names", "named_phases", "option_defaults", "repeat_commands"]

KINDS = {"finetune": FinetuneConfig, "probe": ProbeConfig, "evaluate": EvaluateConfig}
PLACES = {"evaluate": ("run", "data")}
OUT = "NEW"
"""Stands for the directory that the user chooses."""


def repeat_commands(files: RunFiles) -> list[dict[str, str]]:
    """Return the commands that repeat a run, each with what it is; none where `config.yaml` is not there.

    Args:
        files: The run.
    """
    if not files.config:
        return []
    commands = []
    places = PLACES.get(files.kind, ())
    if not places:
        recipe = ["transferkit", files.kind, "--config", str(files.run / "config.yaml"), "--out", OUT]
        commands.append({"name": "With the options as the run wrote them down", "command": shlex.join(recipe)})
    words = ["transferkit", files.kind]
    options = changed_options(files.kind, files.config, group_names(files))
    words += [str(options.pop(name)) for name in places if name in options]
    for name, value in options.items():
        words += flag_words(name, value)
    commands.append(
        {"name": "With flags, those at their default left out", "command": shlex.join([*words, "--out", OUT])}
    )
    return commands


def group_names(files: RunFiles) -> list[str]:
    """Return the layer groups of `plan.json`."""
    return [str(group.get("name")) for group in files.plan.get("groups") or ()]


def changed_options(kind: str, config: Mapping[str, Any], groups: Sequence[str]) -> dict[str, Any]:
    """Return the options of a `config.yaml` that are not at their default; phases by their preset's name, if any.

    Args:
        kind: The verb.
        config: The content of `config.yaml`.
        groups: The model's layer groups, which the phases of a preset depend on.
    """
    defaults = option_defaults(kind)
    values = dict(config)
    if "phases" in values:
        values["phases"] = named_phases(values, groups)
    return {name: value for name, value in values.items()
            if name in defaults and (value != defaults[name] or defaults[name] == REQUIRED)}  # fmt: skip


def option_defaults(kind: str) -> dict[str, Any]:
    """Return the options of a verb with their defaults."""
    return {item.name: default_of(item) for item in dataclasses.fields(KINDS[kind])}


def flag_words(name: str, value: Any) -> list[str]:
    """Return the words that set an option on the command line."""
    flag = f"--{name.replace('_', '-')}"
    if value is True:
        return [flag]
    if value is None or isinstance(value, bool | list | dict):
        return [flag, json.dumps(value, ensure_ascii=False)]
    return [flag, str(value)]


def named_phases(config: Mapping[str, Any], groups: Sequence[str]) -> Any:
    """Return the name of the preset that these phases come from; the phases themselves where there is none."""
    phases = config["phases"]
    if isinstance(phases, str):
        return phases
    known = {item.name for item in dataclasses.fields(FinetuneConfig)}
    options = {name: value for name, value in config.items() if name in known}
    for preset in ("probe-finetune", *PRESETS):
        try:
            preset_options = make_config(FinetuneConfig, {**options, "phases": preset})
            if _spelled(resolve_phases(preset_options, groups or None)) == _spelled(make_phases(phases)):
                return preset
        except TransferkitError:  # this preset does not go with the other options
            continue
    return phases


def _spelled(phases: Sequence[Phase]) -> list[dict[str, Any]]:
    """Return phases as a recipe writes them, which is all that counts; a solved one has no LR there."""
    return [phase.to_dict() for phase in phases]
