"""Optuna's study in a directory: trials, the processes that run them, and the files that are written after each one.

Several processes may work on one study. Trials are drawn and recorded under one lock. The process that runs a trial
holds another, which the system drops with it, so that a trial whose process has ended is done again.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transferkit.core.errors import CheckpointError, gather
from transferkit.core.files import storage_errors
from transferkit.core.locks import hold
from transferkit.runs.write import NOT_SAVED, PATHS, absolute
from transferkit.training.search.plots import TrialRow, best_of, plot_search, write_best, write_trials
from transferkit.training.search.space import DEFAULTS, SearchPlan

if TYPE_CHECKING:
    import optuna

__all__ = ["SearchResult", "Study", "differences", "facts_of"]

LOG, LOCK, JOURNAL_LOCK = "study.log", ".study.lock", ".journal.lock"
FACTS, STOPPED = "facts", "stopped"
"""Attributes of a study besides its trials: what must stay the same, and the trials that count as never done."""

TRIES = 3
"""Times that a trial is begun whose process ends in mid-run; then it has failed."""

STARTUP = 5
"""Trials that finish before any is pruned."""

FEWEST = 8
"""Finished trials before the importance of options is computed."""

PLOT_S = 5.0
"""Seconds between pictures, as trials may take less time than a picture of them."""


@dataclass(frozen=True)
class SearchResult:
    """The result of a search so far.

    Attributes:
        path: The directory: `best.yaml`, `trials.csv`, `importance.png`, `study.log` and the trials' runs.
        number: Of the best trial, from 0; ``None`` while none has finished.
        value: Of the monitored figure on val.
        params: Its options, of those that are searched.
        importance: Share of the variance of the values that each option explains; empty while it is not known.
        trials: All of them, by number.
    """

    path: Path
    number: int | None
    value: float | None
    params: Mapping[str, Any]
    importance: Mapping[str, float]
    trials: tuple[TrialRow, ...]


class Study:
    """Optuna's study of a plan, new or continued.

    Args:
        root: Its directory.
        plan: What is searched.
        sampler: ``"tpe"`` or ``"random"``.
        prune: Whether trials are ended early.

    Raises:
        CheckpointError: The directory holds something else, or a study of other options.
        StorageError: It cannot be created or written to.
    """

    def __init__(self, root: Path, plan: SearchPlan, *, sampler: str, prune: bool) -> None:
        self.root, self.plan, self.sampler = root, plan, sampler
        self._plotted: float | None = None
        if root.exists() and not root.is_dir():
            raise CheckpointError(f"{root}: is a file, expected a directory - give another --out")
        others = {item.name for item in root.iterdir()} - {LOCK, JOURNAL_LOCK} if root.is_dir() else set()
        if others and LOG not in others:
            raise CheckpointError(f"{root}: is not empty and holds no study (no {LOG}) - give another --out")
        with self._alone():
            self.study = self._open(prune)

    def _open(self, prune: bool) -> optuna.Study:
        from optuna import create_study
        from optuna.pruners import MedianPruner, NopPruner
        from optuna.storages.journal import JournalFileBackend, JournalStorage

        path, lock = self.root / LOG, _JournalLock(self.root / JOURNAL_LOCK)
        lock.mend(path)
        axis = self.plan.space.axes.get("epochs")
        wait = max(1, min(axis.extremes() if axis is not None else (self.plan.config.epochs,)) // 3)
        try:
            study = create_study(
                storage=JournalStorage(JournalFileBackend(str(path), lock_obj=lock)),  # type: ignore[arg-type]
                study_name="search",
                load_if_exists=True,
                direction="maximize" if self.plan.monitor.higher_is_better else "minimize",
                pruner=MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=wait) if prune else NopPruner(),
            )
            facts = study.user_attrs.get(FACTS)
        except (ValueError, KeyError, AssertionError) as error:  # Optuna's errors for lines that it cannot read
            raise CheckpointError(f"{path}: is damaged ({error!r}) - give another --out") from error
        if facts is None:
            study.set_user_attr(FACTS, facts_of(self.plan))
        elif problems := differences(facts, facts_of(self.plan)):
            raise CheckpointError(
                f"{self.root}: holds a study of other options: {gather(problems)} - give another --out"
            )
        return study

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with hold(self.root / LOCK, wait=True), storage_errors("write", self.root / LOG):
            yield

    def _lock(self, number: int) -> Path:
        return self.root / "trials" / f".{number}.lock"

    # ---- trials -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def claimed(self, total: int) -> Iterator[tuple[optuna.Trial, dict[str, Any]] | None]:
        """Draw a trial, and hold its lock for the time of the block.

        Args:
            total: Trials in all; with as many of them there is none to draw.

        Yields:
            The trial and the options that were drawn for it.
        """
        with contextlib.ExitStack() as stack:
            with self._alone():
                self._requeue_orphans()
                claim = None
                if sum(row.state != "stopped" for row in self._rows()) < total:
                    begun = len(self.study.get_trials(deepcopy=False))
                    self.study.sampler = _sampler(self.sampler, self.plan.config.seed, begun)
                    trial = self.study.ask()
                    stack.enter_context(hold(self._lock(trial.number), wait=False))
                    stack.callback(self._lock(trial.number).unlink, missing_ok=True)
                    claim = trial, self.plan.space.sample(trial)
            yield claim

    def tell(self, trial: optuna.Trial, *, value: float | None = None, pruned: bool = False, note: str = "") -> None:
        """Record the result of a trial.

        Args:
            trial: One that is claimed.
            value: Its monitored value; ``None`` when it did not finish.
            pruned: It was ended because it did worse than others.
            note: Why it failed.
        """
        from optuna.trial import TrialState

        with self._alone():
            if note:
                trial.set_user_attr("note", note)
            state = TrialState.PRUNED if pruned else TrialState.FAIL if value is None else TrialState.COMPLETE
            self.study.tell(trial, value, state=state)

    def _requeue_orphans(self) -> None:
        """Queue the trials again whose process ended in mid-run; those that were begun often enough have failed."""
        from optuna.trial import TrialState

        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            tries = trial.user_attrs.get("tries", 1)
            with hold(self._lock(trial.number), wait=False) as orphaned:
                if not orphaned:
                    continue
                if tries < TRIES:
                    self.study.set_user_attr(STOPPED, [*self.study.user_attrs.get(STOPPED, []), trial.number])
                self.study.tell(trial.number, state=TrialState.FAIL)
                if tries < TRIES and trial.params.keys() == self.plan.space.axes.keys():
                    self.study.enqueue_trial(dict(trial.params), user_attrs={"tries": tries + 1})
                self._lock(trial.number).unlink(missing_ok=True)

    # ---- results ----------------------------------------------------------------------------------------------

    def publish(self, *, plot: bool = False) -> SearchResult:
        """Write `trials.csv`, `best.yaml` and `importance.png`, and delete what trials need not keep.

        Args:
            plot: Draw now; otherwise only when the last picture is some seconds old.
        """
        monitor = self.plan.monitor
        with self._alone():
            self._requeue_orphans()
            rows = self._rows()
            best = best_of(rows, monitor)
            write_trials(rows, list(self.plan.space.axes), self.root / "trials.csv")
            if best is not None:
                write_best(self.root / "best.yaml", self.plan, best, rows)
            importance: dict[str, float] = {}
            if plot or self._plotted is None or time.monotonic() - self._plotted > PLOT_S:
                importance = self._importance(rows)
                plot_search(rows, importance, self.root / "importance.png", monitor=monitor)
                self._plotted = time.monotonic()
            for row in rows:
                if row.state != "running":
                    _tidy(self.root / "trials" / str(row.number), keep_model=row is best)
        if best is None:
            return SearchResult(self.root, None, None, {}, importance, tuple(rows))
        return SearchResult(self.root, best.number, best.value, best.params, importance, tuple(rows))

    def _rows(self) -> list[TrialRow]:
        words = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}
        stopped, rows = self.study.user_attrs.get(STOPPED, []), []
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state.name not in words:
                continue  # queued again, and not begun yet
            state = "stopped" if trial.number in stopped else words[trial.state.name]
            ended = "its process ended in mid-run"
            notes = {"stopped": ended, "failed": f"{ended}, {TRIES} times"}
            rows.append(
                TrialRow(
                    number=trial.number,
                    state=state,
                    value=None if trial.values is None else trial.values[0],
                    seconds=None if trial.duration is None else trial.duration.total_seconds(),
                    params=self.plan.space.values_of(trial.params),
                    note=trial.user_attrs.get("note", notes.get(state, "")),
                )
            )
        return rows

    def _importance(self, rows: Sequence[TrialRow]) -> dict[str, float]:
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances

        values = [row.value for row in rows if row.state == "finished"]
        if len(values) < FEWEST or len(set(values)) < 2:
            return {}
        try:
            shares = get_param_importances(self.study, evaluator=FanovaImportanceEvaluator(seed=0))
        except RuntimeError:  # no tree of the forest tells the values apart
            return {}
        return {name: float(share) for name, share in shares.items()}


def facts_of(plan: SearchPlan) -> dict[str, Any]:
    """Return the facts that must stay the same while a study goes on, as plain data: ``options`` and ``space``."""
    left_out = {*NOT_SAVED, "accelerator", "workers", *plan.space.axes}
    options = {key: absolute(value) if key in PATHS else value
               for key, value in plan.config.to_dict().items() if key not in left_out}  # fmt: skip
    plain: dict[str, Any] = json.loads(json.dumps({"options": options, "space": plan.space.to_plain()}))
    return plain


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the differences of two `facts_of` in words; an option that one does not know has its default there."""
    axes = {**before["space"], **now["space"]}
    names = sorted({*before["options"], *now["options"]} - axes.keys())
    options = [(key, *(facts["options"].get(key, DEFAULTS.get(key)) for facts in (before, now))) for key in names]
    spaces = [(f"space of {key}", *(facts["space"].get(key, "not searched") for facts in (before, now)))
              for key in sorted(axes)]  # fmt: skip
    return [f"{key} was {old!r}, is now {new!r}" for key, old, new in (*options, *spaces) if old != new]


class _JournalLock:
    """A lock for Optuna's journal that does not outlive its process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stack = contextlib.ExitStack()

    def acquire(self) -> bool:
        """Wait until nobody else writes."""
        self._stack.enter_context(hold(self.path, wait=True))
        return True

    def release(self) -> None:
        """Let others write."""
        self._stack.close()

    def mend(self, journal: Path) -> None:
        """Cut off a last line that a power cut or a full disk left half written."""
        with hold(self.path, wait=True):
            data = journal.read_bytes() if journal.exists() else b""
            if data and not data.endswith(b"\n"):
                with journal.open("r+b") as stream:
                    stream.truncate(data.rfind(b"\n") + 1)


def _sampler(name: str, seed: int, number: int) -> optuna.samplers.BaseSampler:
    """Return a sampler for one trial, seeded by its number, so that no two processes draw the same.

    Seed and number are mixed, not added: a study with the next seed must not repeat this one's draws.
    """
    from optuna.samplers import RandomSampler, TPESampler

    mixed = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
    return (TPESampler if name == "tpe" else RandomSampler)(seed=mixed)


def _tidy(run: Path, *, keep_model: bool) -> None:
    """Delete what is large in a trial's run."""
    if run.is_dir():
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        for name in (".lock", *(() if keep_model else ("model.safetensors", "model.json"))):
            (run / name).unlink(missing_ok=True)
