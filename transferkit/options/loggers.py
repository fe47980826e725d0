"""Loggers as options name them: known names or import paths, and arguments by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transferkit.core.errors import did_you_mean
from transferkit.options.fields import option

__all__ = ["LOGGERS", "NO_LOGGER", "logger_args_option", "logger_names", "logger_option", "logger_problems"]

LOGGERS = ("tensorboard", "wandb", "mlflow", "csv")
"""Those that are known by name; each but the last is an extra of the package."""

NO_LOGGER = "none"
"""Says that a resume goes on without the loggers of its run."""


def logger_option() -> Any:
    """Declare the option that names loggers."""
    return option(
        None, "tensorboard, wandb, mlflow, csv, or the import path of a Lightning logger; several with commas or flags"
    )


def logger_args_option() -> Any:
    """Declare the option with their arguments."""
    return option(None, "arguments of loggers by name, such as '{wandb: {project: cats, offline: true}}'")


def logger_names(value: str | Sequence[str] | None) -> list[str]:
    """Return the loggers that an option names, one by one."""
    items = [] if value is None else [value] if isinstance(value, str) else value
    return [word.strip() for item in items for word in item.split(",")]


def logger_problems(value: str | Sequence[str] | None, arguments: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield what is wrong with the names of loggers and with their arguments, a sentence each."""
    names = logger_names(value)
    known = (*LOGGERS, NO_LOGGER)
    for name in names:
        if name not in known and ("." not in name or not all(name.split("."))):
            yield (
                f"unknown logger {name!r}.{did_you_mean(name, known)} Expected {', '.join(LOGGERS)} or the import path "
                "of a Lightning logger, such as lightning.pytorch.loggers.CSVLogger"
            )
    if len(set(names)) < len(names):
        yield f"--logger is {','.join(names)}, expected each logger once"
    if NO_LOGGER in names and len(names) > 1:
        yield f"--logger is {','.join(names)}, expected 'none' alone, or loggers"
    for name, values in (arguments or {}).items():
        if name not in names:
            yield f"--logger-args are for {name!r}, which --logger does not name.{did_you_mean(str(name), names)}"
        elif not isinstance(values, Mapping):
            yield f"--logger-args of {name} are {values!r}, expected a mapping such as {{save_dir: logs}}"
