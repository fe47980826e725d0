"""`GuardedLogger`: a logger whose failures cost a warning, and never the run that it logs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transferkit.core.errors import TransferkitWarning
from transferkit.core.text import first_line
from transferkit.machine.lightning_import import Logger
from transferkit.training.loggers.kinds import Results, kind_of

__all__ = ["Entry", "GuardedLogger", "Point"]

TRIES = 3
"""Failures in a row after which a logger is left alone: each may take as long as a server takes not to answer."""

Point = tuple[int, Mapping[str, float]]
"""A step, and numbers by name."""

Entry = dict[str, Any]
"""What a run directory remembers of a logger: ``logger`` (name or class), ``args``, ``run`` (its id), ``points``."""


class GuardedLogger(Logger):
    """A logger of Lightning's that can fail without harm: what a Trainer, and callbacks, are given in its place.

    What it lacks itself is the logger's own, `experiment` too; it passes for one of the logger's class. A failure is a
    `TransferkitWarning`. What could not be logged is logged with the next row, so that a server that comes back gets
    all of them; after `TRIES` failures in a row it is left alone. A Trainer does not end it, for the figures of the run
    come after the training: `close` does.

    Args:
        logger: The logger.
        name: As the user calls it, or its class.
        arguments: Of its constructor, as far as they are remembered; ``None`` for a logger that the user has made.

    Raises:
        Exception: By `begin`, as the logger says.
    """

    def __init__(self, logger: Logger, name: str, arguments: Mapping[str, Any] | None) -> None:
        self.logger = logger
        self.label = name
        self.arguments = arguments
        self.kind = kind_of(type(logger))
        self._points = 0
        self._failures = 0
        self._end: Callable[[bool], None] | None = None

    # ---- what a run does with it ------------------------------------------------------------------------------

    def begin(self, params: Mapping[str, Any], earlier: Entry | None) -> None:
        """Open it: where an earlier process logged the same run, to go on there.

        Args:
            params: The options, logged once.
            earlier: What was remembered of it.
        """
        goes_on = earlier is not None and earlier["run"] is not None and self.kind.go_on(self.logger, earlier["run"])
        self._end = self.kind.begin(self.logger, goes_on)
        if goes_on and earlier is not None:
            self._points = int(earlier["points"])
        else:
            self.kind.log_params(self.logger, params)

    def log_points(self, points: Sequence[Point]) -> None:
        """Log the points of a run that are new.

        Args:
            points: All there are so far.
        """
        before = self._points
        for step, values in points[before:]:
            if not self._attempt("log", self.logger.log_metrics, dict(values), step):
                break
            self._points += 1
        if self._points > before and not self._attempt("save", self.logger.save) and self.kind.forgets:
            self._points = before

    def log_results(self, results: Results) -> None:
        """Log what came of the run."""
        if self._attempt("log the figures", self.kind.log_results, self.logger, results):
            self._attempt("save", self.logger.save)

    def log_files(self, files: Sequence[Path]) -> None:
        """Log files, where the logger can hold some."""
        self._attempt("log the files", self.kind.log_files, self.logger, files)

    def close(self, *, success: bool) -> None:
        """End it; a logger that the user has made as a Trainer would, so that more can be logged there.

        Args:
            success: Whether the run came to its end.
        """
        self._failures = 0  # the last word is tried in any case
        self._attempt("end", self.logger.finalize, "success" if success else "failed")
        if self._end is not None and self.arguments is not None:
            self._attempt("end", self._end, success)

    @property
    def entry(self) -> Entry:
        """What a later process needs to go on."""
        version = self.logger.version
        run = version if version is None or isinstance(version, int) else str(version)
        arguments = None if self.arguments is None else dict(self.arguments)
        return {"logger": self.label, "args": arguments, "run": run, "points": self._points}

    @property
    def place(self) -> str:
        """Where it logs, for people."""
        where = self.logger.log_dir
        return f"{self.label} in {where}" if where is not None else f"{self.label}, run {self.logger.version}"

    def _attempt(self, what: str, function: Callable[..., object], *args: Any, **options: Any) -> bool:
        if self._failures >= TRIES:
            return False
        try:
            function(*args, **options)
        except Exception as error:
            self._failures += 1
            self.kind.renew(self.logger)
            more = ", which is left alone from now on" if self._failures == TRIES else ""
            warnings.warn(
                f"logger {self.label} failed to {what} ({first_line(error.__cause__ or error)}): the run does not need "
                f"it{more} - what it lacks stands in the run directory",
                TransferkitWarning,
                stacklevel=4,
            )
            return False
        self._failures = 0
        return True

    # ---- what a Trainer and callbacks do with it --------------------------------------------------------------

    @property  # type: ignore[misc]  # that of an object can be set, this one cannot
    def __class__(self) -> Any:
        """The logger's class, for callbacks that ask which logger there is."""
        return type(self.logger)

    def __getattr__(self, name: str) -> Any:
        """Return what the logger has besides."""
        if name.startswith("__"):  # asked for by `copy` and `pickle` before there is a logger
            raise AttributeError(name)
        return getattr(self.logger, name)

    @property
    def experiment(self) -> Any:
        """The logger's own."""
        return self.logger.experiment  # type: ignore[attr-defined]  # nearly all have one

    @property
    def name(self) -> str | None:
        """The logger's own."""
        return self.logger.name

    @property
    def version(self) -> int | str | None:
        """The logger's own."""
        return self.logger.version

    @property
    def save_dir(self) -> str | None:
        """The logger's own."""
        return self.logger.save_dir

    @property
    def root_dir(self) -> str | None:
        """The logger's own."""
        return self.logger.root_dir

    @property
    def log_dir(self) -> str | None:
        """The logger's own."""
        return self.logger.log_dir

    @property
    def group_separator(self) -> str:
        """The logger's own."""
        return self.logger.group_separator

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers of a callback."""
        self._attempt("log", self.logger.log_metrics, dict(metrics), step)

    def log_hyperparams(self, params: Any, *args: Any, **options: Any) -> None:
        """Log parameters of a callback."""
        self._attempt("log", self.logger.log_hyperparams, params, *args, **options)

    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Log the network, where the logger does."""
        self._attempt("log the network", self.logger.log_graph, model, input_array)

    def save(self) -> None:
        """Write what is in memory."""
        self._attempt("save", self.logger.save)

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Take note of a checkpoint of a callback."""
        self._attempt("log a checkpoint", self.logger.after_save_checkpoint, checkpoint_callback)

    def finalize(self, status: str) -> None:
        """Go on: the training is over, the run is not."""
