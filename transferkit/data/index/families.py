"""What belongs together, step by step: a union-find whose families are named by their smallest members."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

__all__ = ["Families"]

_Key = TypeVar("_Key", bound=Any)


class Families(Generic[_Key]):
    """Families of keys that can be ordered; each key is alone at first."""

    def __init__(self) -> None:
        self._parent: dict[_Key, _Key] = {}

    def join(self, keys: Iterable[_Key]) -> None:
        """Make one family of those of all the keys."""
        roots = sorted({self.name(key) for key in keys})
        for root in roots[1:]:
            self._parent[root] = roots[0]

    def name(self, key: _Key) -> _Key:
        """Return the smallest member of the key's family."""
        parent = self._parent
        while (above := parent.get(key, key)) != key:
            parent[key] = parent.get(above, above)
            key = above
        return key

    def members(self) -> dict[_Key, list[_Key]]:
        """Return the families of two and more, by their names, members ascending."""
        families: defaultdict[_Key, list[_Key]] = defaultdict(list)
        for key in sorted({*self._parent, *self._parent.values()}):
            families[self.name(key)].append(key)
        return {name: family for name, family in families.items() if len(family) > 1}
