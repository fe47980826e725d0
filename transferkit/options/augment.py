"""The option that says how pictures are augmented: a preset by name, or own steps, of a file or of the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from transferkit.core.documents import parse_json, parse_yaml
from transferkit.core.errors import ConfigError, did_you_mean
from transferkit.core.files import user_path
from transferkit.core.text import one_line, shown
from transferkit.options.fields import option

__all__ = ["PRESETS", "augment_option", "augment_words", "no_flip_problem", "read_augment"]

PRESETS: Final = ("none", "light", "standard", "heavy")
_FILES: Final = (".yaml", ".yml", ".json")
_STEP: Final = "a step is a name, or a name with arguments such as {HorizontalFlip: {p: 0.5}}"
_MOST_BYTES: Final = 1_000_000


def augment_option(text: str) -> Any:
    """Declare the option; a file is read at once, so that its steps are the value from then on."""
    return option(
        "light",
        f"{text}: none, light, standard, heavy, or a .yaml or .json FILE of steps of albumentations, a list",
        reads=read_augment,
    )


def read_augment(value: Any) -> Any:
    """Return what the option's value stands for: a preset's name, or a list of steps as plain values.

    Whether albumentations knows the steps is looked at elsewhere; see `transferkit.data.augment.custom`.

    Raises:
        ConfigError: It is neither, or the file cannot be read.
    """
    if not isinstance(value, str):
        return [_plain_step(step, f"step {number + 1}") for number, step in enumerate(_not_empty(value, "--augment"))]
    if value in PRESETS:
        return value
    path = Path(user_path(value))
    if path.suffix.lower() not in _FILES:
        raise ConfigError(
            f"--augment is {shown(value)}.{did_you_mean(value, PRESETS)} Expected one of {', '.join(PRESETS)}, or a "
            f"{', '.join(_FILES[:-1])} or {_FILES[-1]} file of steps"
        )
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"--augment {value} has more than {_MOST_BYTES:,} bytes, expected a list of steps")
        text = path.read_text(encoding="utf-8")
        steps = parse_json(text) if path.suffix.lower() == ".json" else parse_yaml(text)
    except OSError as error:
        raise ConfigError(f"--augment {value} cannot be read ({error.strerror}) - expected a file of steps") from error
    except ValueError as error:
        raise ConfigError(f"--augment {value}: {one_line(error)} - expected a list of steps") from error
    return [_plain_step(step, f"{value}: step {number + 1}") for number, step in enumerate(_not_empty(steps, value))]


def augment_words(value: str | list[Any]) -> str:
    """Return an augmentation in a few words: a preset's name, or the names of own steps."""
    if isinstance(value, str):
        return value
    return f"own steps ({', '.join(step if isinstance(step, str) else next(iter(step)) for step in value)})"


def no_flip_problem(augment: str | list[Any], no_flip: bool) -> list[str]:
    """Return what is wrong with ``--no-flip`` beside own steps."""
    own = no_flip and not isinstance(augment, str)
    return ["--no-flip is of the presets: own steps of --augment mirror only if they say so - leave it out"] * own


def _not_empty(steps: Any, where: str) -> list[Any]:
    if not isinstance(steps, list | tuple) or not steps:
        raise ConfigError(f"{where}: expected a list of steps, one at least, got {shown(steps)} - {_STEP}")
    return list(steps)


def _plain_step(step: Any, where: str) -> Any:
    named = isinstance(step, Mapping) and len(step) == 1 and all(isinstance(name, str) for name in step)
    if not (isinstance(step, str) or named):
        raise ConfigError(f"{where} is {shown(step)} - {_STEP}")
    return _plain(step, where)


def _plain(value: Any, where: str) -> Any:
    """Return a value as YAML and JSON hold it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part, where) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part, where) for part in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(f"{where} holds {shown(value)}, expected numbers, words, lists and mappings")
