"""From a name or an import path to the class of a logger, checked before anything is computed."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping
from typing import Any

from transferkit.core.errors import ConfigError, did_you_mean, object_at
from transferkit.core.text import first_line
from transferkit.machine.lightning_import import Logger
from transferkit.training.loggers.kinds import CLASSES, kind_of

__all__ = ["build_logger", "logger_class", "require_logger"]


def logger_class(name: str, arguments: Mapping[str, Any]) -> type[Logger]:
    """Return the class of a logger whose package is installed.

    Args:
        name: ``"tensorboard"``, ``"wandb"``, ``"mlflow"``, ``"csv"``, or an import path. Importing runs the module, so
            it must be one the user trusts.
        arguments: For its constructor: their names are checked.

    Raises:
        ConfigError: A package is missing, there is nothing to import, it is no logger of Lightning's, or it does not
            take an argument.
    """
    cls = CLASSES[name] if name in CLASSES else _class_at(name)
    packages, extra = kind_of(cls).packages, kind_of(cls).extra
    if packages and not any(map(_is_installed, packages)):
        raise ConfigError(
            f"--logger {name} needs {packages[0]}, which is not installed - pip install 'transferkit[{extra}]'"
        )
    parameters = inspect.signature(cls).parameters
    known = sorted(parameter.name for parameter in parameters.values() if parameter.kind not in _VARIADIC)
    for key in arguments:
        if key not in known and not any(parameter.kind is _KEYWORDS for parameter in parameters.values()):
            raise ConfigError(
                f"--logger {name} takes no argument {key!r}, expected one of {', '.join(known) or 'none'}."
                f"{did_you_mean(key, known)}"
            )
    return cls


_KEYWORDS = inspect.Parameter.VAR_KEYWORD
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, _KEYWORDS)


def build_logger(name: str, cls: type[Logger], arguments: Mapping[str, Any]) -> Logger:
    """Construct a logger.

    Raises:
        ConfigError: Its class refuses the arguments.
    """
    try:
        return cls(**arguments)
    except Exception as error:  # of a class that is not ours
        raise ConfigError(
            f"--logger {name} cannot be made ({first_line(error)}) - correct its arguments in --logger-args, or leave "
            "it out"
        ) from error


def require_logger(value: object) -> Logger:
    """Return an object that is one of Lightning's loggers.

    Raises:
        ConfigError: It is something else.
    """
    if isinstance(value, Logger):
        return value
    what = f"{value.__module__}.{value.__qualname__}" if isinstance(value, type) else type(value).__qualname__
    raise ConfigError(f"logger is {what}{_of_another_lightning(type(value))}, {EXPECTED}")


OTHER_LIGHTNINGS = ("pytorch_lightning", "lightning_fabric", "lightning.fabric")

EXPECTED = (
    "expected a logger of lightning.pytorch.loggers, the name of one (tensorboard, wandb, mlflow, csv), or several"
)


def _class_at(path: str) -> type[Logger]:
    cls = object_at(path, f"--logger {path}", example="lightning.pytorch.loggers.CSVLogger")
    if not (inspect.isclass(cls) and issubclass(cls, Logger)):
        other = _of_another_lightning(cls) if inspect.isclass(cls) else ""
        raise ConfigError(f"--logger {path} is no subclass of lightning.pytorch.loggers.Logger{other} - give one")
    return cls


def _of_another_lightning(cls: type) -> str:
    """Return, for a message, under which other name of Lightning's a class is a logger."""
    homes = [base.__module__ for base in cls.__mro__ if base.__name__ == "Logger"]
    other = next((name for name in OTHER_LIGHTNINGS if any(home.startswith(name) for home in homes)), None)
    return "" if other is None else f" but of {other}, whose parts do not mix with it"


def _is_installed(package: str) -> bool:
    """Whether a package can be imported; a folder of its name in the working directory is none."""
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # a module that was put there without a spec
        return True
    return spec is not None and spec.origin is not None
