"""JSON and YAML as plain values, whatever the text holds: no code, no nesting without end, no aliases that explode."""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transferkit.core.text import listing, one_line

if TYPE_CHECKING:
    import yaml

__all__ = ["parse_json", "parse_yaml", "yaml_text"]

MAX_DEPTH = 64
"""Levels of a document: more than any of ours has, and few enough for every program that walks it."""

MAX_VALUES = 100_000
"""Values of a YAML text, an alias counted as what it stands for: a kilobyte of aliases can stand for gigabytes."""


def parse_json(text: str | bytes) -> Any:
    """Return the value that a JSON text holds.

    Raises:
        ValueError: It is no JSON, no UTF-8, or nested too deeply.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep") from error
    _check(value, most=None)
    return value


def parse_yaml(text: str) -> Any:
    """Return the value that a YAML text holds, read as YAML 1.2 and people read it.

    Other than in YAML 1.1, ``3e-4`` is a number, ``1:30``, ``2020-01-01``, ``on`` and ``off`` are texts, and ``010``
    is ten. ``yes`` and ``no`` stay true and false.

    Raises:
        ValueError: It is no YAML, has a tag that makes objects, a key twice, or is too deep or too large.
    """
    import yaml

    try:
        value = yaml.load(text, _loader())  # a SafeLoader: no tag makes objects
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {one_line(error)}") from error
    except RecursionError as error:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep") from error
    _check(value, most=MAX_VALUES)
    return value


def yaml_text(values: Mapping[str, Any]) -> str:
    """Return plain values as YAML that `parse_yaml` reads back as they are."""
    import yaml

    return yaml.dump(dict(values), Dumper=_dumper(), sort_keys=False, allow_unicode=True)


_FLOAT = re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$")
_SCALARS = (
    ("null", re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"(true|True|TRUE|false|False|FALSE|yes|Yes|YES|no|No|NO)$"), list("tTfFyYnN")),
    ("int", re.compile(r"([-+]?\d+(_\d+)*|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
    ("merge", re.compile(r"<<$"), ["<"]),
)
"""How plain scalars are understood: YAML 1.2's core schema, and what stays of 1.1's."""


@functools.cache
def _loader() -> type[yaml.SafeLoader]:
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  not those of YAML 1.1

    def mapping(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge")]
        counts = Counter(str(key.value) for key in keys)
        twice = sorted(name for name, count in counts.items() if count > 1)
        if twice:
            raise ValueError(f"{listing(twice, quote=False)} given twice, expected each key once")
        return loader.construct_mapping(node, deep=True)

    def whole(loader: Loader, node: yaml.ScalarNode) -> int:
        text = str(loader.construct_scalar(node))
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))

    for tag, pattern, first in _SCALARS:
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", pattern, first)
    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    Loader.add_constructor("tag:yaml.org,2002:int", whole)
    return Loader


@functools.cache
def _dumper() -> type[yaml.SafeDumper]:
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: Dumper, value: str) -> yaml.ScalarNode:
        # PyYAML writes the other line ends of Unicode as they are, and reads them as spaces.
        style = '"' if any(char in value for char in "\r\x85\u2028\u2029\ufeff") else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    for tag, pattern, first in _SCALARS:  # what reads as a number, such as the text 3e-4, is quoted
        Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", pattern, first)
    return Dumper


def _check(value: Any, *, most: int | None) -> None:
    """Raise a `ValueError` for what is too deep or has too many values; an alias counts each time it is met."""
    waiting, count = [(value, 1)], 0
    while waiting:
        inner, depth = waiting.pop()
        if not isinstance(inner, dict | list):
            continue
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
        count += len(inner)
        if most is not None and count > most:
            raise ValueError(f"holds more than {most:,} values")
        waiting += [(part, depth + 1) for part in (inner.values() if isinstance(inner, dict) else inner)]
