"""Command lines and recipes to options by field name, with every mistake in one error.

jsonargparse makes the flags, the recipes and the help out of a verb's dataclass. It stops at the first mistake, and
tells it in a sentence without saying which field is meant. So nothing here reads its sentences: where it refuses a
command line, flags and keys are looked at one by one and described in the words of `options.fields`. Its own sentence
is shown only where that finds nothing, such as for a word too many.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_origin, get_type_hints

from transferkit.cli.verbs import VERBS, Verb
from transferkit.core.errors import ConfigError, did_you_mean, gather
from transferkit.core.text import one_line
from transferkit.options.fields import REQUIRED, default_of, flag, make_config, type_problem

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

    set_loader("recipe", _load_yaml, exceptions=(ValueError,))
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
                default, text = SUPPRESS, f"{text} (required)"
            parser.add_argument(flag(item.name), type=hint, default=default, help=text, metavar=metavar)
    return parser


def parse_options(name: str, words: Sequence[str]) -> dict[str, Any]:
    """Return the options that were given, by field name.

    Args:
        name: Of the verb.
        words: What follows it on the command line.

    Raises:
        ConfigError: With every unknown flag, unknown key and bad value at once.
    """
    verb = VERBS[name]
    parser = build_parser(verb)
    try:
        options: dict[str, Any] = parser.parse_args(list(words), defaults=False).as_dict()
    except ConfigError as error:
        problems = _Diagnosis(parser, verb).problems(words) or [str(error)]
        raise ConfigError(f"{gather(problems)}; see transferkit {name} --help") from error
    options.pop("config", None)
    if not (name == "finetune" and options.get("resume")):  # a resume has its options from the run directory
        make_config(verb.options, options)
    return options


class _Diagnosis:
    """All mistakes of a command line that the parser refused."""

    def __init__(self, parser: ArgumentParser, verb: Verb) -> None:
        self.parser = parser
        self.verb = verb
        self.fields = {item.name: item for item in dataclasses.fields(verb.options)}
        self.sound: dict[str, Any] = {}
        """Values that are of their types, by field name."""

    def problems(self, words: Sequence[str]) -> list[str]:
        """Return a sentence for every mistake."""
        names = {flag(name): name for name in self.fields}
        leading = next((at for at, word in enumerate(words) if word.startswith("-") and word != "-"), len(words))
        problems = self._places(words[:leading])
        for at, word in enumerate(words[leading:], leading):
            option, equals, text = word.partition("=")
            if not option.startswith("--"):
                continue
            name = names.get(option)
            if name is None and option != CONFIG:
                problems.append(f"unknown flag {option}.{did_you_mean(option, [*names, CONFIG])}")
                continue
            if name is not None and _is_switch(self.fields[name]):
                problems += [f"{option} takes no value"] if equals else []
                continue
            if not equals:
                text = words[at + 1] if at + 1 < len(words) else ""
            if not text or (not equals and text.startswith("--")):
                problems.append(f"{option} needs a value")
            else:
                problems += self._recipe(text) if name is None else self._value(name, option, text)
        stand_in = {"data": "-"} if "data" in self.fields else {}  # a recipe that cannot be read may hold it
        try:
            make_config(self.verb.options, {**stand_in, **self.sound})
        except ConfigError as error:
            problems.append(str(error))
        return problems

    def _places(self, words: Sequence[str]) -> list[str]:
        """Look at the words before the first flag."""
        problems = []
        for place, word in zip(self.verb.places, words, strict=False):
            several = isinstance(default_of(self.fields[place]), list)
            problems += self._value(place, place.upper(), [word] if several else word)
        return problems

    def _recipe(self, path: str) -> list[str]:
        try:
            values = _load_yaml(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            return [f"{CONFIG} {path}: {error.strerror}, expected a YAML file"]
        except ValueError as error:
            return [f"{CONFIG} {path}: {one_line(error)}"]
        if not isinstance(values, dict):
            return [f"{CONFIG} {path}: holds no options, expected 'name: value' lines"]
        problems = []
        for key, value in values.items():
            if key in self.fields:
                problems += self._value(key, flag(key), value)
            else:
                problems.append(f"unknown key {key!r} in the recipe.{did_you_mean(str(key), self.fields)}")
        return problems

    def _value(self, name: str, place: str, value: Any) -> list[str]:
        """Try one value alone, and keep it where it is of its type.

        Args:
            name: Of the field.
            place: What the user calls it.
            value: As written.
        """
        others = {"run": "-"} if "run" in self.verb.places else {}  # the parser insists on it
        try:
            self.sound[name] = self.parser.parse_object({**others, name: value}, defaults=False)[name]
        except ConfigError as error:
            hint = get_type_hints(self.verb.options)[name]
            return type_problem(place, value, hint) or [f"{place}: {error}"]
        return []


def _is_switch(item: dataclasses.Field[Any]) -> bool:
    return default_of(item) is False


def _load_yaml(text: str) -> Any:
    """Load YAML without tags and without duplicate keys, for recipes and for the values of flags."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    def mapping(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
        keys = [loader.construct_object(key) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} given twice, expected each key once")
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(text, Loader)  # a SafeLoader: no tag makes objects
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {one_line(error)}") from error
