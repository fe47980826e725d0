"""Declaring and checking options: dataclass fields with help texts and ranges, and every mistake in one error."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from transferkit.core.documents import parse_yaml
from transferkit.core.errors import ConfigError, did_you_mean, gather
from transferkit.core.files import is_too_long, user_path
from transferkit.core.text import is_text, shown

__all__ = [
    "BELOW_ONE",
    "EPOCHS",
    "MOST_EPOCHS",
    "NOT_NEGATIVE",
    "POSITIVE",
    "REQUIRED",
    "Options",
    "Range",
    "at_least",
    "default_of",
    "flag",
    "make_config",
    "option",
    "option_problems",
    "read_value",
    "same_option",
    "type_problem",
]

_PLACES = frozenset(
    {"add", "against", "data", "fix", "init_from", "out", "palette", "paths", "root", "run", "runs", "source", "store"}
    | {"teacher", "to", "weights"}
)
"""Options that are paths, or may be: ``~`` and environment variables stand for what they mean to the user."""

REQUIRED = ""
"""The default of an option without one: the empty string is never a valid path."""


@dataclass(frozen=True)
class Range:
    """The numbers that an option takes.

    Attributes:
        words: For a message: ``"expected"`` comes before them.
        holds: Whether a number is one of them.
    """

    words: str
    holds: Callable[[float], bool]


def at_least(low: int, *, most: int | None = None) -> Range:
    """Return the range of the whole numbers from `low` on, or up to `most`."""
    if most is None:
        return Range(f"a whole number of at least {low}", lambda value: value >= low)
    return Range(f"a whole number of at least {low} and at most {most:,}", lambda value: low <= value <= most)


MOST_EPOCHS = 1_000_000
EPOCHS = at_least(1, most=MOST_EPOCHS)
POSITIVE = Range("a finite number above 0", lambda value: math.isfinite(value) and value > 0)
NOT_NEGATIVE = Range("a finite number of at least 0", lambda value: math.isfinite(value) and value >= 0)
BELOW_ONE = Range("a number in [0, 1)", lambda value: 0.0 <= value < 1.0)


def option(
    default: Any,
    text: str,
    within: Range | None = None,
    *,
    missing: str | None = None,
    reads: Callable[[Any], Any] | None = None,
) -> Any:
    """Declare an option.

    Args:
        default: Its default.
        text: Its help, units included.
        within: The numbers that it takes; words such as ``"auto"`` and ``None`` are a matter of its type.
        missing: What to say where it has to be there and is not.
        reads: Returns what a value stands for, such as the content of a file; of that itself. Raises `ConfigError`.
    """
    metadata = {"help": text, "range": within, "missing": missing, "reads": reads}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def same_option(kind: type[Options], name: str) -> Any:
    """Declare an option that another verb has, too: the same default, help and range.

    Args:
        kind: The other verb's options.
        name: Of the field.
    """
    return next(field(default=item.default, metadata=item.metadata) for item in fields(kind) if item.name == name)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of every verb's options."""

    def problems(self) -> list[str]:
        """Return everything that is wrong with the values, a sentence each; empty when they can be tried."""
        problems = []
        for item in fields(self):
            value, within = getattr(self, item.name), item.metadata["range"]
            if not value and item.metadata["missing"]:
                problems.append(item.metadata["missing"])
            elif within is not None and isinstance(value, int | float) and not within.holds(value):
                problems.append(f"{flag(item.name)} is {shown(value)}, expected {within.words}")
            problems += _unread(item, value)
            for path in (value if isinstance(value, list) else [value]) if item.name in _PLACES else ():
                if isinstance(path, str) and is_too_long(path):
                    problems.append(f"{flag(item.name)} is {shown(path)}, longer than a path can be - shorten it")
        return [*problems, *self._conflicts()]

    def require_places(self) -> None:
        """Check that the files and folders to be read are there, which takes no library.

        Raises:
            TransferkitError: One is not.
        """

    def _conflicts(self) -> Iterator[str]:
        """Yield what is wrong with values beside each other; a subclass adds its own to those of its base."""
        yield from ()


Config = TypeVar("Config", bound=Options)


def make_config(kind: type[Config], options: Mapping[str, Any]) -> Config:
    """Build a verb's options from keyword arguments, with every mistake in one error.

    Args:
        kind: One of this room's dataclasses.
        options: Values by field name.

    Raises:
        ConfigError: A name is unknown, a value has the wrong type or is out of range.
    """
    problems = option_problems(kind, options)
    if problems:
        raise ConfigError(gather(problems))
    return _build(kind, options)


def option_problems(kind: type[Options], options: Mapping[str, Any]) -> list[str]:
    """Return what `make_config` would raise, a sentence for each mistake; empty where it builds."""
    hints = get_type_hints(kind)
    problems = [f"unknown option {shown(key)}.{did_you_mean(str(key), hints)}" for key in options if key not in hints]
    for key, hint in hints.items():
        problems += type_problem(key, options[key], hint) if key in options else []
    if not problems:
        return _build(kind, options).problems()
    return problems + [problem for item in fields(kind) if item.name in options
                       for problem in _unread(item, options[item.name])]  # fmt: skip


def _unread(item: Field[Any], value: Any) -> list[str]:
    """Return why what a value stands for cannot be had."""
    try:
        if item.metadata["reads"] is not None:
            item.metadata["reads"](value)
    except ConfigError as error:
        return [str(error)]
    return []


def _build(kind: type[Config], options: Mapping[str, Any]) -> Config:
    hints = get_type_hints(kind)
    values = {key: _plain(value, hints[key]) for key, value in options.items()}
    for key in _PLACES & values.keys():
        value = values[key]
        values[key] = [user_path(path) for path in value] if isinstance(value, list) else value and user_path(value)
    for item in fields(kind):
        if item.name in values and item.metadata["reads"] is not None:
            with suppress(ConfigError):  # which `problems` tells
                values[item.name] = item.metadata["reads"](values[item.name])
    return kind(**values)


def default_of(item: Field[Any]) -> Any:
    """Return a field's default value."""
    return item.default if item.default_factory is MISSING else item.default_factory()


def flag(name: str) -> str:
    """Return the flag of a field: ``batch_size`` -> ``--batch-size``."""
    return f"--{name.replace('_', '-')}"


def read_value(value: Any, hint: Any) -> Any:
    """Return what a word of the command line, or a value of a recipe, means for an option; itself where nothing fits.

    Args:
        value: As written: of the command line a text.
        hint: The type of the option, as for `type_problem`.
    """
    kinds = _kinds(hint)
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    if isinstance(value, int) and str(value) in words:  # `precision: 32`
        return str(value)
    if not isinstance(value, str) or value in words or hint is str:
        return value
    if hint is bool and value in ("on", "off"):
        return value == "on"
    try:
        meant = parse_yaml(value)
    except ValueError:
        return value
    if isinstance(meant, str) or (
        str in kinds and not isinstance(meant, dict | list | None) and type(meant) not in kinds
    ):
        return value
    return meant if any(_fits(meant, kind) for kind in kinds) else value


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
        parts = value if isinstance(value, list | tuple) else [value]
        bad = [part for part in parts if isinstance(part, str | os.PathLike) and not _is_text(part)]
        return [f"{name} is {shown(part)}, expected a text without NUL and halves of characters" for part in bad[:1]]
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    names = [_TYPES[kind][1] for kind in map(_plainest, kinds) if kind in _TYPES and kind is not NoneType]
    if words and not names:
        return [f"{name} is {shown(value)}.{_meant(value, words)} Expected one of {', '.join(words)}"]
    return [f"{name} is {shown(value)}, expected {' or '.join([*names, *words])}"]


def _meant(value: Any, words: list[str]) -> str:
    return did_you_mean(value, words) if isinstance(value, str) else ""


def _is_text(value: str | os.PathLike[Any]) -> bool:
    path = os.fspath(value)
    return isinstance(path, str) and is_text(path)


_TYPES: dict[Any, tuple[Any, str]] = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    str: ((str, os.PathLike), "a text"),
    list: ((list, tuple), "a list"),
    dict: (Mapping, "a mapping"),
    NoneType: (NoneType, "null"),
}
"""By type: the Python types of a value, and its name in a message."""


_LARGEST: dict[Any, float] = {int: 2**63 - 1, float: sys.float_info.max}
"""Whole numbers beyond them are not computed with."""


def _kinds(hint: Any) -> tuple[Any, ...]:
    """Return the parts of a union; the type itself where it is none."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _plainest(kind: Any) -> Any:
    """Return a type without its parameters."""
    return get_origin(kind) or kind


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if isinstance(value, bool):  # a number to Python, and to nobody else
        return kind is bool
    if not isinstance(value, _TYPES[_plainest(kind)][0]):
        return False
    if isinstance(value, int) and kind in _LARGEST and abs(value) > _LARGEST[kind]:
        return False
    return kind != list[str] or all(isinstance(part, str) for part in value)


def _plain(value: Any, hint: Any) -> Any:
    """Turn a path-like into text and a whole number into a float where the option is one."""
    kinds = _kinds(hint)
    if str in kinds and isinstance(value, os.PathLike):
        return os.fspath(value)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value
