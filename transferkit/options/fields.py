"""How options are declared and checked: dataclass fields with help texts, and every mistake in one error."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import MISSING, Field, field
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from transferkit.core.errors import ConfigError, did_you_mean, gather

__all__ = ["at_least", "default_of", "make_config", "option", "positive", "type_problem"]

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
        kind: One of this room's dataclasses.
        options: Values by field name.

    Raises:
        ConfigError: A name is unknown, a value has the wrong type or is out of range.
    """
    hints = get_type_hints(kind)
    problems = [f"unknown option {key!r}.{did_you_mean(key, hints)}" for key in options if key not in hints]
    problems += [
        text for key, hint in hints.items() if key in options for text in type_problem(key, options[key], hint)
    ]
    if problems:
        raise ConfigError(gather(problems))
    config = kind(**{key: _plain(value, hints[key]) for key, value in options.items()})
    problems = config.problems()  # type: ignore[attr-defined]
    if problems:
        raise ConfigError(gather(problems))
    return config


def default_of(item: Field[Any]) -> Any:
    """Return a field's default value."""
    if item.default_factory is not MISSING:
        return item.default_factory()
    return item.default


def type_problem(name: str, value: Any, hint: Any) -> list[str]:
    """Return what is wrong with the type of an option's value; empty when nothing is.

    Args:
        name: What the message calls the option.
        value: Its value.
        hint: Its type, such as ``int | None`` or ``Literal["a", "b"]``; nothing more complicated than
            ``str | list[dict[str, Any]]``.
    """
    kinds = _kinds(hint)
    if any(_fits(value, kind) for kind in kinds):
        return []
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    names = [_TYPES[kind][1] for kind in map(_plainest, kinds) if kind in _TYPES and kind is not NoneType]
    if words and not names:
        return [f"{name} is {value!r}.{did_you_mean(str(value), words)} Expected one of {', '.join(words)}"]
    return [f"{name} is {value!r}, expected {' or '.join([*names, *words])}"]


_TYPES: dict[Any, tuple[Any, str]] = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    str: ((str, os.PathLike), "a text"),
    list: ((list, tuple), "a list"),
    dict: (Mapping, "a mapping"),
    NoneType: (NoneType, "null"),
}
"""What a value of each type may be, and its name in a message."""


def _kinds(hint: Any) -> tuple[Any, ...]:
    """Return the parts of a union; the type itself where it is none."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _plainest(kind: Any) -> Any:
    """Return a type without its parameters."""
    return get_origin(kind) or kind


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if isinstance(value, bool):  # a number to Python, and to nobody else
        return kind is bool
    fits = isinstance(value, _TYPES[_plainest(kind)][0])
    return fits and (kind != list[str] or all(isinstance(part, str) for part in value))


def _plain(value: Any, hint: Any) -> Any:
    """Turn a path-like into text and a whole number into a float where the option is one."""
    kinds = _kinds(hint)
    if str in kinds and isinstance(value, os.PathLike):
        return os.fspath(value)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value
