"""`RunLoggers`: the loggers of a run, from their names to the last file, remembered for those who resume it."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from transferkit.core.errors import CheckpointError, ConfigError, TransferkitWarning
from transferkit.core.files import user_path, write_json
from transferkit.core.logs import quiet_loggers
from transferkit.core.text import first_line
from transferkit.machine.lightning_import import DummyLogger, Logger
from transferkit.options.loggers import NO_LOGGER, logger_names
from transferkit.runs.files import SPLITS, RunFiles, number
from transferkit.runs.summary import print_lines
from transferkit.show.progress import output_console
from transferkit.show.words import value_text
from transferkit.training.loggers.build import build_logger, logger_class, require_logger
from transferkit.training.loggers.guarded import Entry, GuardedLogger, Point
from transferkit.training.loggers.kinds import CLASSES, Results, Where, kind_of
from transferkit.training.ranks.parallel import is_writer, on_first
from transferkit.training.ranks.processes import started_as
from transferkit.training.ranks.strategies import quiet_lightning

__all__ = ["FILES", "RunLoggers"]

MEMORY = "loggers.json"
"""The file of a run directory that remembers its loggers."""

PLACES = ("save_dir", "dir")
"""Arguments of loggers that are folders."""

FILES = ("report.html", "metrics.json", "history.csv", "config.yaml", "curves.png", "path.png", "depth.png",
         "learning_curve.png")  # fmt: skip
"""What loggers are given of a run, where it is there; never the pictures, nor the weights."""


class RunLoggers:
    """The loggers of one run. The first of several processes logs; without loggers nothing happens.

    As a context it ends what was begun, as a success or as a failure.

    Args:
        loggers: Made by the user: used besides those that options name.
        label: What the run is called; by default as its directory.
        group: What runs that belong together are called.

    Raises:
        ConfigError: One of them is no logger of Lightning's.
    """

    def __init__(self, loggers: Sequence[Logger] = (), *, label: str | None = None, group: str | None = None) -> None:
        self._made = [require_logger(logger) for logger in loggers]
        self._named: list[tuple[str, type[Logger], dict[str, Any]]] = []
        self._label, self._group, self._quiet = label, group, False
        self._earlier: list[Entry] = []
        self._run = Path()
        self._open: list[GuardedLogger] = []
        self._step = 0

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End."""
        self.close(success=kind is None)

    # ---- before the run ---------------------------------------------------------------------------------------

    def prepare(
        self, names: str | Sequence[str] | None, arguments: Mapping[str, Any] | None, *, quiet: bool,
        resumed: Path | None = None,
    ) -> None:  # fmt: skip
        """Look at the loggers that options name, before anything is computed.

        Args:
            names: As the option has it; of a resumed run, those that it had where none is given.
            arguments: By name.
            quiet: Whether the terminal stays empty.
            resumed: The directory of a run that is gone on with.

        Raises:
            ConfigError: One cannot be had.
            CheckpointError: What the run remembers of its loggers cannot be read.
        """
        self._quiet = quiet
        self._earlier = [] if resumed is None else _remembered(resumed)
        chosen = {name: _plain(name, (arguments or {}).get(name) or {}) for name in logger_names(names)}
        if names is None and not self._made:
            # A run directory may come from somebody else: no class that it names is imported.
            known = [entry for entry in self._earlier if entry["logger"] in CLASSES]
            chosen = {entry["logger"]: _plain(entry["logger"], entry["args"] or {}) for entry in known}
            lost = [f"{entry['logger']} ({entry['run']})" for entry in self._earlier if entry not in known]
            if lost:
                warnings.warn(
                    f"nothing more is logged by {', '.join(lost)} - name the logger again to go on there",
                    TransferkitWarning,
                    stacklevel=3,
                )
        chosen.pop(NO_LOGGER, None)
        self._named = [(name, logger_class(name, own), own) for name, own in chosen.items()]
        if not started_as():
            for name, cls, own in self._named:
                _check(name, cls, own)

    def open(self, run: Path) -> None:
        """Begin to log a run whose options are written down.

        Args:
            run: Its directory.

        Raises:
            ConfigError: A logger cannot begin.
        """
        if self._named or self._made:
            on_first(self._begin, run)

    def _begin(self, run: Path) -> None:
        self._run = run
        where = Where(run.absolute(), self._label or run.absolute().name, self._group, self._quiet)
        params, earlier = RunFiles(run).config, list(self._earlier)
        with quiet_lightning():
            for logger in self._made:
                name = f"{type(logger).__module__}.{type(logger).__qualname__}"
                self._open_one(GuardedLogger(logger, name, None), params, _take(earlier, name))
            for name, cls, own in self._named:
                before = _take(earlier, name)
                known = own if before is None else {**(before["args"] or {}), **own}
                arguments = _complete(name, cls, where, known)
                places = set(kind_of(cls).places) - known.keys()
                saved = {key: value for key, value in arguments.items() if key not in places}
                with _quiet_databases():
                    logger = build_logger(name, cls, arguments)
                    self._open_one(GuardedLogger(logger, name, saved), params, before)
        self._remember()
        if not self._quiet:
            print_lines(output_console(), [("logger", logger.place) for logger in self._open])

    def _open_one(self, logger: GuardedLogger, params: Mapping[str, Any], earlier: Entry | None) -> None:
        try:
            logger.begin(params, earlier)
        except Exception as error:  # of a package that is not ours, or a server
            raise _unusable(logger.label, error) from error
        self._open.append(logger)

    # ---- in the run -------------------------------------------------------------------------------------------

    def for_trainer(self) -> list[Logger]:
        """Return the loggers that a Trainer is given: in processes that do not log, as many that do nothing."""
        if is_writer():
            return list(self._open)
        return [DummyLogger() for _ in (*self._made, *self._named)]

    def write(self, points: Sequence[Point]) -> None:
        """Log what has happened so far.

        Args:
            points: All of the run; those that are logged are not logged again.

        Raises:
            StorageError: The run directory cannot be written to.
        """
        if not self._open:
            return
        self._step = max((step for step, _ in points), default=0)
        for logger in self._open:
            logger.log_points(points)
        self._remember()

    def conclude(self) -> None:
        """Log the figures of the run, with their intervals."""
        if not self._open:
            return
        files = RunFiles(self._run)
        figures, table = _figures(files)
        results = Results(files.config, figures, table, self._step)
        for logger in self._open:
            logger.log_results(results)

    def log_files(self) -> None:
        """Log the files of the run that are there."""
        files = [self._run / name for name in FILES if (self._run / name).is_file()]
        for logger in self._open:
            logger.log_files(files)

    def close(self, *, success: bool) -> None:
        """End what was begun.

        Args:
            success: Whether the run came to its end.
        """
        for logger in self._open:
            logger.close(success=success)
        self._open = []

    def _remember(self) -> None:
        write_json(self._run / MEMORY, {"loggers": [logger.entry for logger in self._open]})


# ---- small parts ------------------------------------------------------------------------------------------------


def _plain(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments that can be remembered, places as paths from anywhere."""
    try:
        json.dumps(arguments)
    except TypeError as error:
        raise ConfigError(
            f"--logger-args of {name} hold a value that is not plain ({error}) - make the logger in Python, and pass "
            "it as logger="
        ) from error
    return {
        key: str(Path(user_path(value)).absolute()) if key in PLACES and "://" not in str(value) else value
        for key, value in arguments.items()
    }


def _remembered(run: Path) -> list[Entry]:
    """Return what a run directory remembers of its loggers."""
    path = run / MEMORY
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["loggers"]
        return [{key: entry[key] for key in ("logger", "args", "run", "points")} for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({first_line(error)}) - was it edited? Delete it to log the rest of the run anew"
        ) from error


@contextlib.contextmanager
def _quiet_databases() -> Iterator[None]:
    """Keep out of the output how MLflow makes a new database."""
    with quiet_loggers(logging.WARNING, "mlflow", "alembic"):
        yield


def _take(entries: list[Entry], name: str) -> Entry | None:
    """Return the first entry of a logger, and take it off the list."""
    for at, entry in enumerate(entries):
        if entry["logger"] == name:
            return entries.pop(at)
    return None


def _check(name: str, cls: type[Logger], own: Mapping[str, Any]) -> None:
    """Find out that nobody is logged in, or that there is no server, before anything is computed."""
    nowhere = Where(Path(), "")
    arguments = _complete(name, cls, nowhere, own)
    try:
        with quiet_lightning(), _quiet_databases():
            kind_of(cls).check(arguments)
    except Exception as error:  # of a package that is not ours, or a server
        raise _unusable(name, error) from error


def _complete(name: str, cls: type[Logger], where: Where, own: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return kind_of(cls).arguments(where, own)
    except Exception as error:  # importing a package runs code that is not ours
        raise _unusable(name, error) from error


def _unusable(name: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"logger {name} cannot be used ({first_line(error)}) - correct its settings, or leave it out (of a resume by "
        "--logger none)"
    )


def _figures(files: RunFiles) -> tuple[dict[str, float], str]:
    """Return the figures of all pictures together by name, ``final/<split>_<key>``, and as a table."""
    values: dict[str, float | None] = {}
    lines = ["| split | figure | value | 95 % interval |", "|---|---|---|---|"]
    for split in [split for split in SPLITS if split in files.metrics]:
        for figure in files.figures(split):
            if figure.of is not None or number(figure.value) is None:
                continue
            key = f"final/{split}_{figure.key}"
            values[key] = figure.value
            interval = ""
            if figure.ci is not None:
                values[f"{key}_low"], values[f"{key}_high"] = figure.ci
                interval = " to ".join(value_text(bound, figure.unit) for bound in figure.ci)
            lines.append(f"| {split} | {figure.label} | {value_text(figure.value, figure.unit)} | {interval} |")
    values["final/epoch"] = files.metrics.get("selection", {}).get("epoch")
    values["final/time_s"] = files.metrics.get("time_s")
    known = ((key, number(value)) for key, value in values.items())
    return {key: value for key, value in known if value is not None}, "\n".join(lines)
