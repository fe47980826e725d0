"""Command lines and recipes to options by field name, with every mistake in one error.

jsonargparse makes help and recipes out of a verb's dataclass. It stops at the first mistake, tells it in a sentence
without saying which field is meant, and reads numbers as YAML 1.1 does, where 1:30 is ninety. So words are taken one by
one here, and `options.fields` says what each means.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_origin, get_type_hints

from transferkit.cli.verbs import VERBS, Verb
from transferkit.core.documents import parse_yaml
from transferkit.core.errors import ConfigError, did_you_mean, gather
from transferkit.core.text import one_line, shown
from transferkit.options.fields import REQUIRED, default_of, flag, option_problems, read_value, type_problem

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["build_parser", "parse_options"]

CONFIG = "--config"


def build_parser(verb: Verb) -> ArgumentParser:
    """Return the parser of a verb: a flag and a recipe key per field of its dataclass.

    Its `error` raises `ConfigError`.
    """
    from jsonargparse import SUPPRESS, ActionConfigFile, ArgumentParser, set_loader  # type: ignore[attr-defined]

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise ConfigError(one_line(message))

    set_loader("recipe", parse_yaml, exceptions=(ValueError,))
    parser = Parser(
        prog=f"transferkit {verb.name}", description=f"{verb.help}.", allow_abbrev=False, default_env=False,
        usage=" ".join([f"transferkit {verb.name}", *map(str.upper, verb.places), "[--config FILE] [flags]"]),
    )  # fmt: skip
    parser.parser_mode = "recipe"
    recipe = "YAML file with any of these options; a flag after it goes before it"
    parser.add_argument(CONFIG, action=ActionConfigFile, metavar="FILE", help=recipe)
    hints = get_type_hints(verb.options)
    for item in dataclasses.fields(verb.options):
        hint, default, text = hints[item.name], default_of(item), item.metadata["help"].replace("%", "%%")
        if item.name in verb.places:
            several = get_origin(hint) is list
            extra: dict[str, Any] = {"nargs": "*" if several else "?", "default": default}
            if item.name == "run":  # with "?" the words after a flag would not reach the next place
                extra = {}
            kind = str if several else hint
            parser.add_argument(item.name, type=kind, help=text, metavar=item.name.upper(), **extra)
        elif _is_switch(item):
            parser.add_argument(flag(item.name), action="store_true", default=False, help=text)
        else:
            metavar = item.name.rsplit("_", 1)[-1].upper()
            if default == REQUIRED:
                default, text = SUPPRESS, f"{text} (required)" if item.metadata["missing"] else text
            parser.add_argument(flag(item.name), type=hint, default=default, help=text, metavar=metavar)
    return parser


def parse_options(name: str, words: Sequence[str]) -> dict[str, Any]:
    """Return the options of a command line, by field name; not yet whether they go together.

    Args:
        name: Of the verb.
        words: What follows it on the command line.

    Raises:
        ConfigError: With every unknown flag, unknown key and bad value at once.
    """
    reading = _Reading(VERBS[name])
    reading.take(words)
    if reading.problems:
        # A recipe that cannot be read may hold the data.
        stand_in = {"data": "-"} if "data" in reading.fields else {}
        problems = reading.problems + option_problems(reading.verb.options, {**stand_in, **reading.options})
        raise ConfigError(f"{gather(problems)}; see transferkit {name} --help")
    return reading.options


class _Reading:
    """Options from words, one by one.

    Attributes:
        options: Values that are of their types, by field name.
        problems: A sentence for every mistake.
    """

    def __init__(self, verb: Verb) -> None:
        self.verb = verb
        self.hints = get_type_hints(verb.options)
        self.fields = {item.name: item for item in dataclasses.fields(verb.options)}
        self.options: dict[str, Any] = {}
        self.problems: list[str] = []

    def take(self, words: Sequence[str]) -> None:
        """Read a command line."""
        names, rest = {flag(name): name for name in self.fields}, deque(words)
        loose: list[str] = []
        strange, flagged = False, set[str]()
        while rest:
            word = rest.popleft()
            if word == "--":
                loose += rest
                break
            if not word.startswith("-") or word == "-":
                loose.append(word)
                continue
            option, equals, text = word.partition("=")
            name = names.get(option)
            if name is None and option != CONFIG:
                strange = True
                hint = did_you_mean(option, [*names, CONFIG])
                self.problems.append(f"unknown flag {option[:200]}{'.' if hint else ''}{hint}")
            elif name is not None and _is_switch(self.fields[name]):
                self.options[name] = True
                self.problems += [f"{option} takes no value"] if equals else []
            elif not equals and (not rest or rest[0].startswith("--")):
                self.problems.append(f"{option} needs a value")
            else:
                text = text if equals else rest.popleft()
                if name is None:
                    self._take_recipe(text)
                else:
                    before = _listed(self.options.get(name)) if name in flagged else []
                    self._take_value(name, option, text)
                    if before and list[str] in get_args(self.hints[name]):  # given twice: both count
                        self.options[name] = [*before, *_listed(self.options[name])]
                    flagged.add(name)
        self._take_places(loose, strange=strange)

    def _take_places(self, words: Sequence[str], *, strange: bool) -> None:
        """Read the words that are no flags; after a strange flag one too many may be its value."""
        for at, place in enumerate(self.verb.places):
            several = isinstance(default_of(self.fields[place]), list)
            if words[at:]:
                self._take_value(place, place.upper(), list(words[at:]) if several else words[at])
            if several:
                return
        if words[len(self.verb.places) :] and not strange:
            self.problems.append(f"{shown(words[len(self.verb.places)])} is a word too many")

    def _take_recipe(self, path: str) -> None:
        try:
            values = parse_yaml(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            self.problems.append(f"{CONFIG} {path}: {error.strerror}, expected a YAML file")
            return
        except ValueError as error:
            self.problems.append(f"{CONFIG} {path}: {one_line(error)}")
            return
        if not isinstance(values, dict):
            self.problems.append(f"{CONFIG} {path}: holds no options, expected 'name: value' lines")
            return
        for key, value in values.items():
            if key in self.fields:
                self._take_value(key, flag(key), value)
            else:
                self.problems.append(f"unknown key {shown(key)} in the recipe.{did_you_mean(str(key), self.fields)}")

    def _take_value(self, name: str, place: str, value: Any) -> None:
        """Read one value: where it is not of its type, say so in our words.

        Args:
            name: Of the field.
            place: What the user calls it.
            value: As written.
        """
        hint = self.hints[name]
        value = read_value(value, hint)
        problems = type_problem(place, value, hint)
        self.problems += problems
        if not problems:
            self.options[name] = value


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _is_switch(item: dataclasses.Field[Any]) -> bool:
    return default_of(item) is False
