"""How options are declared and checked: dataclass fields with help texts, and every mistake in one error."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import MISSING, Field, field, fields
from typing import Any, TypeVar

from transferkit.core.errors import ConfigError, did_you_mean, gather

__all__ = ["at_least", "default_of", "make_config", "option", "positive"]

Config = TypeVar("Config")


def option(default: Any, text: str) -> Any:
    """Declare an option with its default and its help text, units included."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


def at_least(name: str, value: int, low: int) -> list[str]:
    """Return what is wrong with a whole number that must not be below `low`."""
    return [] if value >= low else [f"--{name.replace('_', '-')} is {value}, expected a whole number of at least {low}"]


def positive(name: str, value: float) -> list[str]:
    """Return what is wrong with a number that must be finite and above 0."""
    if math.isfinite(value) and value > 0:
        return []
    return [f"--{name.replace('_', '-')} is {value}, expected a finite number above 0"]


def make_config(kind: type[Config], options: Mapping[str, Any]) -> Config:
    """Build a verb's options from keyword arguments, with every mistake in one error.

    Args:
        kind: One of this module's dataclasses.
        options: Values by field name.

    Raises:
        ConfigError: A name is unknown, a value has the wrong type or is out of range.
    """
    known: dict[str, Field[Any]] = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    problems = [f"unknown option {key!r}.{did_you_mean(key, known)}" for key in options if key not in known]
    for key, item in known.items():
        if key in options:
            problems += _type_problem(key, options[key], str(item.type))
    if problems:
        raise ConfigError(gather(problems))
    config = kind(**{key: _plain(value, str(known[key].type)) for key, value in options.items()})
    problems = config.problems()  # type: ignore[attr-defined]
    if problems:
        raise ConfigError(gather(problems))
    return config


def default_of(item: Field[Any]) -> Any:
    """Return a field's default value."""
    if item.default_factory is not MISSING:
        return item.default_factory()
    return item.default


def _plain(value: Any, annotation: str) -> Any:
    """Turn a path-like into text and a whole number into a float where the option is one."""
    if annotation.startswith("str") and isinstance(value, os.PathLike):
        return os.fspath(value)
    if annotation.startswith("float") and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _type_problem(name: str, value: Any, annotation: str) -> list[str]:
    """Return what is wrong with a value's type; the annotations of this module are a small closed set."""
    if value is None:
        return [] if "None" in annotation else [f"{name} is None, expected {annotation}"]
    if annotation.startswith("Literal["):
        choices = _choices(annotation)
        if value in choices:
            return []
        return [f"{name} is {value!r}.{did_you_mean(str(value), choices)} Expected one of {', '.join(choices)}"]
    if isinstance(value, str) and " | Literal[" in annotation:
        choices = _choices(annotation[annotation.index("Literal[") :])
        kind = "a whole number" if annotation.startswith("int") else "a number"
        return [] if value in choices else [f"{name} is {value!r}, expected {kind} or {', '.join(choices)}"]
    accepted = {
        "bool": isinstance(value, bool),
        "int": isinstance(value, int) and not isinstance(value, bool),
        "float": isinstance(value, int | float) and not isinstance(value, bool),
        "str": isinstance(value, str | os.PathLike),
        "list[str]": isinstance(value, list) and all(isinstance(part, str) for part in value),
        "list[dict[str, Any]]": isinstance(value, list | tuple),
        "dict[str, Any]": isinstance(value, Mapping),
    }
    parts = [part.strip() for part in annotation.split(" | ")]
    if any(accepted[part] for part in parts if part != "None" and not part.startswith("Literal[")):
        return []
    return [f"{name} is {value!r}, expected {annotation.replace('dict[str, Any]', 'a mapping')}"]


def _choices(annotation: str) -> list[str]:
    """Return the words of a ``Literal[...]``."""
    return [part.strip(" \"'") for part in annotation[len("Literal[") : annotation.index("]")].split(",")]
