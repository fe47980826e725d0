"""`Selector`: parameters of a model in words, `head, layer[34] - norm`: one language for phases, LRs, adapters. Pure.

Read from left to right: ``,`` or ``|`` adds, ``-`` or ``!`` takes away from all that stands before it, ``&`` joins two
names into what is in both, and binds tighter. What begins by taking away begins with everything. A ``-`` inside a name
is part of it: put a space before it. A name is one of

- ``all``, or a kind: ``bias``, ``norm`` (scale and shift of norm layers), ``adapter``;
- a layer group, or a glob over their names: ``head``, ``layer[34]``, ``blocks.*``;
- where no group is called so, a module or a parameter, or a glob over their names in the network's own library:
  ``layer4.1``, ``*.attn.qkv``, ``layer1.*.weight``. A module stands for all that is in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from transferkit.core.errors import ConfigError, did_you_mean, gather
from transferkit.core.text import shown

__all__ = ["ADAPTER", "ALL", "BIAS", "HEAD", "KINDS", "NORM", "Groups", "Layout", "Leaf", "Selector", "Term",
           "as_layout", "cuts_of", "labels_of", "parse_selector", "selector_problems"]  # fmt: skip

HEAD, ALL = "head", "all"
BIAS, NORM, ADAPTER = "bias", "norm", "adapter"
KINDS = (BIAS, NORM, ADAPTER)

_OWN = ("backbone.model.", "backbone.")
"""What stands before the names that the network's library gives its parameters."""


@dataclass(frozen=True)
class Leaf:
    """A parameter, as a selector sees it.

    Attributes:
        group: Its layer group.
        name: In the model, such as ``backbone.model.layer1.0.bn1.weight``; unique within its group.
        size: Numbers in it.
        kinds: Which of `KINDS` it is of.
    """

    group: str
    name: str
    size: int = 0
    kinds: frozenset[str] = frozenset(KINDS)

    @property
    def library_name(self) -> str:
        """Its name in the network's own library, whether an adapter sits on its layer or not."""
        prefix = next((prefix for prefix in _OWN if self.name.startswith(prefix)), "")
        return self.name.removeprefix(prefix).replace(".base_layer.", ".")

    def paths(self) -> Iterator[str]:
        """Yield what a name may stand for: the parameter, and the modules that it is in, as both sides call them."""
        for name in dict.fromkeys((self.library_name, self.name)):
            parts = name.split(".")
            yield from (".".join(parts[:end]) for end in range(len(parts), 0, -1))


@dataclass(frozen=True)
class Layout:
    """The parameters of a model, in layer groups.

    Attributes:
        names: Of the groups, from input to output, the head last.
        leaves: All parameters, by group.
    """

    names: tuple[str, ...]
    leaves: tuple[Leaf, ...]

    def groups_of(self, leaves: Sequence[Leaf]) -> tuple[str, ...]:
        """Return the groups that any of these parameters is of, in order."""
        own = {leaf.group for leaf in leaves}
        return tuple(name for name in self.names if name in own)


Groups = Layout | Sequence[str]
"""A layout, or names of layer groups alone, where parameters are not known: each stands for one, of every kind."""


def as_layout(groups: Groups) -> Layout:
    """Return a layout; of names alone each is one parameter of every kind."""
    if isinstance(groups, Layout):
        return groups
    return Layout(tuple(groups), tuple(Leaf(name, name) for name in groups))


@dataclass(frozen=True)
class Term:
    """A step of a selector.

    Attributes:
        patterns: What is in all of these.
        takes_away: Whether it is taken away, instead of added.
    """

    patterns: tuple[str, ...]
    takes_away: bool = False

    def __str__(self) -> str:
        return " & ".join(self.patterns)


@dataclass(frozen=True)
class Selector:
    """Steps that are taken one after the other, beginning with nothing."""

    terms: tuple[Term, ...]

    def __str__(self) -> str:
        text = ""
        for term in self.terms:
            text += f" - {term}" if term.takes_away else f", {term}" if text else str(term)
        return text

    def select(self, groups: Groups) -> tuple[Leaf, ...]:
        """Return the parameters that are meant, in order."""
        layout = as_layout(groups)
        chosen = _chosen(self.terms, layout)
        return tuple(leaf for place, leaf in enumerate(layout.leaves) if place in chosen)

    def problems(self, groups: Groups) -> list[str]:
        """Return which of its steps reach nothing in a model, a sentence each with close matches."""
        layout = as_layout(groups)
        problems = [
            f"{pattern!r} matches no layer group, module or parameter.{did_you_mean(pattern, _words(layout))} "
            f"Known: {', '.join(layout.names)}; {ALL}, {', '.join(KINDS)}."
            if pattern not in KINDS else f"there is no {pattern!r} in this model"
            for pattern in dict.fromkeys(name for term in self.terms for name in term.patterns)
            if not _matching(pattern, layout)
        ]  # fmt: skip
        if problems:
            return problems
        for end, term in enumerate(self.terms):
            both = _both(term, layout)
            before = _chosen(self.terms[:end], layout)
            if not both:
                problems.append(f"{str(term)!r} is nothing: no parameter is in all of them")
            elif term.takes_away and not both & before:
                problems.append(f"'- {term}' takes nothing away: {str(Selector(self.terms[:end]))!r} has none of it")
        if not problems and not _chosen(self.terms, layout):
            problems.append(f"{str(self)!r} leaves nothing")
        return problems


@lru_cache(maxsize=256)
def parse_selector(text: str) -> Selector:
    """Return the selector that is written so.

    Raises:
        ConfigError: It cannot be read.
    """
    terms, problems = _read(text)
    if problems:
        raise ConfigError(gather(problems))
    return Selector((Term((ALL,)), *terms) if terms[0].takes_away else terms)


def selector_problems(text: str) -> list[str]:
    """Return why a text is no selector, a sentence; empty where it is one."""
    return _read(text)[1]


_TOKENS = re.compile(r"[,|&!-]|(?:\[[^\]]*\]|[^\s,|&!])+")
"""Operators, and names: a bracket of a glob may hold anything, and ``-`` stands inside a name."""


def _read(text: str) -> tuple[tuple[Term, ...], list[str]]:
    """Return the steps of a text, and why it cannot be read."""
    terms: list[tuple[bool, list[str]]] = []
    operator: str | None = ","
    for token in _TOKENS.findall(text):
        if token not in tuple(",|&!-"):
            if operator is None:
                before = terms[-1][1][-1]
                return (), [f"{shown(text)}: {before!r} and {token!r} have nothing between them, expected ',' or '-'"]
            if operator == "&":
                terms[-1][1].append(token)
            else:
                terms.append((operator in "!-", [token]))
            operator = None
        elif operator is None or (operator in ",|" and token in "!-"):
            operator = token
        else:
            return (), [f"{shown(text)} has no name before {token!r}, expected one"]
    if not terms:
        return (), ["the selector is empty, expected names such as head, all or layer4"]
    if operator is not None:
        return (), [f"{shown(text)} ends with {operator!r}, expected a name after it"]
    return tuple(Term(tuple(patterns), takes_away) for takes_away, patterns in terms), []


@lru_cache(maxsize=64)
def _chosen(terms: tuple[Term, ...], layout: Layout) -> frozenset[int]:
    """Return the places of the parameters that are meant."""
    chosen: frozenset[int] = frozenset()
    for term in terms:
        both = _both(term, layout)
        chosen = chosen - both if term.takes_away else chosen | both
    return chosen


def _both(term: Term, layout: Layout) -> frozenset[int]:
    return frozenset.intersection(*(_matching(pattern, layout) for pattern in term.patterns))


@lru_cache(maxsize=256)
def _matching(pattern: str, layout: Layout) -> frozenset[int]:
    leaves = tuple(enumerate(layout.leaves))
    if pattern == ALL:
        return frozenset(place for place, _ in leaves)
    if pattern in KINDS:
        return frozenset(place for place, leaf in leaves if pattern in leaf.kinds)
    groups = {name for name in layout.names if name == pattern or fnmatchcase(name, pattern)}
    if groups:
        return frozenset(place for place, leaf in leaves if leaf.group in groups)
    return frozenset(
        place for place, leaf in leaves if any(path == pattern or fnmatchcase(path, pattern) for path in leaf.paths())
    )


def _words(layout: Layout) -> list[str]:
    """Return what can be said of a model, for close matches."""
    paths = (path for leaf in layout.leaves for path in leaf.paths())
    return list(dict.fromkeys((*layout.names, ALL, *KINDS, *paths)))


# ---- groups cut by LR -------------------------------------------------------------------------------------------


def cuts_of(selectors: Sequence[Selector], layout: Layout) -> tuple[Selector, ...]:
    """Return those that take parts of layer groups: an optimizer needs groups of its own for them."""
    return tuple(dict.fromkeys(selector for selector in selectors if _is_cut(selector, layout)))


def _is_cut(selector: Selector, layout: Layout) -> bool:
    chosen = set(selector.select(layout))
    return any(len({leaf in chosen for leaf in layout.leaves if leaf.group == name}) > 1 for name in layout.names)


def labels_of(layout: Layout, cuts: Sequence[Selector]) -> dict[Leaf, str]:
    """Return by parameter the name of its LR: its layer group's, with the cuts that it is in: ``layer1[norm]``."""
    members = [(str(cut), frozenset(cut.select(layout))) for cut in cuts]
    labels = {}
    for leaf in layout.leaves:
        own = [text for text, leaves in members if leaf in leaves]
        labels[leaf] = f"{leaf.group}[{'; '.join(own)}]" if own else leaf.group
    return labels
