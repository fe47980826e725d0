"""The exceptions: one base, one class per kind of failure, each with its exit status.

TransferkitError            1   a bug of ours when raised bare
├── ConfigError             2   usage or configuration
├── DataError               3   pictures, folders, manifests
├── BackboneError           4   backbones and weights
├── TrainingError           5   diverged, out of memory
├── CheckpointError         6   checkpoints and run directories
├── StoreError              7   feature store
├── ExportError             8   export and predict
├── StorageError           74   disk and other I/O
└── Interrupted       130, 143  SIGINT or SIGTERM, after a clean stop

TransferkitWarning              something the user should know, and can live with
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Sequence
from typing import ClassVar

from transferkit.core.records import Finding
from transferkit.core.text import first_line

__all__ = [
    "BackboneError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ExportError",
    "Interrupted",
    "StorageError",
    "StoreError",
    "TrainingError",
    "TransferkitError",
    "TransferkitWarning",
    "did_you_mean",
    "gather",
    "object_at",
]


class TransferkitError(Exception):
    """Base of every error a user can cause or meet.

    The message is one line that says what was seen, what was expected and what to do.
    """

    kind: ClassVar[str] = "internal"
    exit_status: ClassVar[int] = 1


class ConfigError(TransferkitError):
    """An option, flag, recipe or argument is wrong."""

    kind = "config"
    exit_status = 2


class DataError(TransferkitError):
    """A picture, folder or manifest is missing, unreadable or contradictory.

    Args:
        message: As for every error.
        findings: What is wrong by kind, where more than the message is known.
    """

    kind = "data"
    exit_status = 3

    def __init__(self, message: str, findings: Sequence[Finding] = ()) -> None:
        super().__init__(message)
        self.findings = tuple(findings)


class BackboneError(TransferkitError):
    """A backbone is unknown, or its weights cannot be had or do not fit."""

    kind = "backbone"
    exit_status = 4


class TrainingError(TransferkitError):
    """Training diverged or ran out of memory."""

    kind = "training"
    exit_status = 5


class CheckpointError(TransferkitError):
    """A checkpoint or run directory is missing, damaged, locked or does not match."""

    kind = "checkpoint"
    exit_status = 6


class StoreError(TransferkitError):
    """The feature store is damaged or holds values that cannot be right."""

    kind = "store"
    exit_status = 7


class ExportError(TransferkitError):
    """An export or a prediction failed."""

    kind = "export"
    exit_status = 8


class StorageError(TransferkitError):
    """The disk is full, read-only or failing."""

    kind = "io"
    exit_status = 74


class Interrupted(TransferkitError):
    """A signal stopped the work after the state was saved.

    Args:
        message: What was saved and how to go on.
        signum: The signal received: SIGINT (2) or SIGTERM (15).
    """

    kind = "interrupted"

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum
        self.exit_status = 128 + signum  # type: ignore[misc]  # the one error whose status depends on its cause


class TransferkitWarning(UserWarning):
    """Base of every warning transferkit issues."""


def did_you_mean(word: str, known: Iterable[str], *, least: float = 0.6) -> str:
    """Return ``" Did you mean 'x'?"`` for the three closest of `known` at most, or ``""`` when nothing is close.

    Args:
        word: What the user wrote.
        known: What would have been accepted.
        least: From which similarity on a word is close, in [0, 1], see `difflib.SequenceMatcher.ratio`.
    """
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=least)
    return f" Did you mean {' or '.join(repr(match) for match in close)}?" if close else ""


def gather(problems: Sequence[str]) -> str:
    """Join several problems into one line: alone as it is, several numbered ``(1) ...; (2) ...``."""
    if len(problems) == 1:
        return problems[0]
    return "; ".join(f"({number}) {problem.rstrip('.')}" for number, problem in enumerate(problems, 1))


def object_at(path: str, what: str, *, example: str) -> object:
    """Return what stands at an import path that the user wrote, such as ``sklearn.svm.SVC``.

    Args:
        path: Module and name. Importing runs the module, so it must be one the user trusts.
        what: It in the words of a message, with the option it is of.
        example: For messages, a path that would do.

    Raises:
        ConfigError: The module cannot be imported, whatever it raises, or has nothing of that name.
    """
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs code that is not ours
        raise ConfigError(
            f"{what} cannot be imported ({first_line(error)}) - expected an import path such as {example}; "
            "check its spelling and that its package is installed"
        ) from error
    if name not in vars(module):
        raise ConfigError(
            f"{what}: {module_name} has no {name!r}, expected the name of a class in it."
            f"{did_you_mean(name, vars(module))}"
        )
    return vars(module)[name]
