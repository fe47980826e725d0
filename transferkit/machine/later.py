"""Modules that others load unasked: loaded when they are used, and not before."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

__all__ = ["later"]


class _Later:
    """Something of a module that is loaded when it is called, or its attributes are asked for."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def __getattr__(self, attribute: str) -> Any:
        if attribute in ("_module", "_name"):  # of a copy that is being made, which has none yet
            raise AttributeError(attribute)
        return getattr(self._real(), attribute)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._real()(*arguments, **named)

    def _real(self) -> Any:
        module = import_module(self._module)
        if isinstance(module, _StandIn):
            raise ImportError(f"{self._module}.{self._name} is used while its module is put off", name=self._module)
        return getattr(module, self._name)


class _StandIn(ModuleType):
    """A module whose names stand for those of the real one."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)  # by which others see that it is installed

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # which Python's own machinery asks for
            raise AttributeError(name)
        return _Later(self.__name__, name)


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # a mock in its place
        return False


@contextlib.contextmanager
def later(*modules: str) -> Iterator[None]:
    """Import stand-ins for the time of the block, in the place of installed modules that are not loaded yet.

    What is imported meanwhile and holds names of these modules has the real things as soon as it uses them. Names that
    it needs at once, such as a class to inherit from, cannot be had: that is an `ImportError`.

    Args:
        modules: Dotted names.
    """
    absent = [name for name in modules if name not in sys.modules and _installed(name.partition(".")[0])]
    sys.modules.update({name: _StandIn(name) for name in absent})
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
