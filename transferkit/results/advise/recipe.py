"""The recommended recipe: options of `finetune` as YAML, each with its reason beside it."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from transferkit.core.documents import yaml_text
from transferkit.core.files import atomic_write
from transferkit.core.text import one_line, visible
from transferkit.models.backbones.registry import Backbone
from transferkit.models.task import Task
from transferkit.options.advise import AdviseConfig, Candidate
from transferkit.options.data import DataOptions
from transferkit.options.fields import default_of, make_config
from transferkit.options.training import FinetuneConfig
from transferkit.results.advise.quadrants import Quadrants
from transferkit.runs.write import NOT_SAVED, PATHS, absolute
from transferkit.training.plan.amount import by_amount

__all__ = ["Setting", "choose_settings", "write_recipe"]

EPOCHS: Final = 10
"""Of fine-tuning, as all ways of training were measured."""

MEASURED: Final = {
    (True, True): "near and few: +0.8 points over the solved head alone, +5.8 over fine-tuning at once",
    (False, True): "far and few: -0.2 points beside the solved head alone, +24.2 over fine-tuning at once",
    (True, False): "near and many: +8.0 points over the solved head alone, +0.8 over fine-tuning at once",
    (False, False): "far and many: +1.3 points over the solved head alone, -0.2 beside fine-tuning at once",
}
"""What ``phases: auto`` gave by likeness and by whether pictures of a class were few: `tests/bench/RESULTS.md`, "Ways
of training by data set and labels, with the bundled backbone"."""


@dataclass(frozen=True)
class Setting:
    """An option of the recipe.

    Attributes:
        name: Of the option.
        value: As a recipe writes it.
        reason: A sentence.
    """

    name: str
    value: Any
    reason: str


def choose_settings(
    config: AdviseConfig, best: Candidate, backbone: Backbone, ranked: str, quadrants: Quadrants, task: Task
) -> list[Setting]:
    """Return the options of the recipe, with their reasons.

    What goes by the number of pictures (batch, batch norm, LR) is what `finetune` itself would choose, spelled out.

    Args:
        config: The options of the advice: where the data lie and how they are split.
        best: The candidate.
        backbone: It.
        ranked: Why it is the best, a sentence.
        quadrants: What is known of the data.
        task: Of the data, bound to what answers mean.
    """
    settings = [Setting(name, value, "as here") for name, value in _data_options(config).items()]
    settings[0] = dataclasses.replace(settings[0], reason=quadrants.sentences()["amount"])
    settings.append(Setting("backbone", best.backbone, ranked))
    settings.append(Setting("weights", best.weights, "those that were compared"))
    if best.image_size is not None:
        settings.append(Setting("image_size", best.image_size, "the size that was compared"))
    settings.append(Setting("phases", "auto", _phases_reason(quadrants, task)))
    settings.append(Setting("epochs", EPOCHS, "the ways of training were measured with so many"))
    options = {setting.name: setting.value for setting in settings}
    _, choices = by_amount(make_config(FinetuneConfig, options), quadrants.pictures, task, backbone)
    lr = next((choice for choice in choices if choice.name == "lr"), None)
    settings += [Setting(choice.name, choice.value, choice.reason) for choice in choices]
    if lr is None:
        usual = "the usual peak LR after a solved head, with 0.75 of it for each layer group further from the head"
        settings.append(Setting("lr", task.head_kinds.lr, usual))
    return settings


def write_recipe(path: Path, settings: Sequence[Setting], opening: Sequence[str]) -> None:
    """Write the recipe, for `finetune --config`.

    Args:
        path: The YAML file.
        settings: In order.
        opening: Lines of the comment at its top, after the command.

    Raises:
        StorageError: The disk is full or read-only.
    """
    lines = [f"  transferkit finetune --config {shlex.quote(str(path))}", "", *opening]
    text = [f"# {_comment(line)}".rstrip() for line in lines]
    for setting in settings:
        value = absolute(setting.value) if setting.name in PATHS else setting.value
        text += ["", f"# {_comment(setting.reason)}", yaml_text({setting.name: value}).rstrip("\n")]
    atomic_write(path, "\n".join(text) + "\n")


def _comment(line: str) -> str:
    """Return a line that stays one, whatever names are in it."""
    return line if line.startswith("  ") and line.isprintable() else one_line(visible(line))


def _data_options(config: AdviseConfig) -> dict[str, Any]:
    """Return the options about the data that are not at their defaults, ``data`` first."""
    values = {"data": config.data}
    for item in dataclasses.fields(DataOptions):
        value = getattr(config, item.name)
        if item.name != "data" and item.name not in NOT_SAVED and value != default_of(item):
            values[item.name] = value
    return values


def _phases_reason(quadrants: Quadrants, task: Task) -> str:
    usual = "the head is solved, then everything is tuned, and the val pictures decide which of the two is kept"
    if not task.output.names_one:
        return f"{usual}; measured on classes only"
    if quadrants.near is None:
        cases = [MEASURED[near, quadrants.few] for near in (True, False)]
        return f"{usual}; measured, {'; '.join(cases)}"
    return f"{usual}; measured, {MEASURED[quadrants.near, quadrants.few]}"
