"""`report.html`: one self-contained page about a run, or about several side by side; no network, no foreign script."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transferkit.core.errors import CheckpointError, TransferkitError, TransferkitWarning
from transferkit.core.files import atomic_write
from transferkit.options.results import ReportConfig
from transferkit.results.report import facts
from transferkit.results.report.command import repeat_commands
from transferkit.results.report.compare import compare_runs
from transferkit.results.report.page import TaskSections, render
from transferkit.results.report.unlike import likeness
from transferkit.runs.curves import corruption_chart, depth_chart, history_charts, label_chart, path_charts
from transferkit.runs.files import CHOSEN, RunFiles, number, read_run
from transferkit.show.progress import output_console, progress_console, waiting
from transferkit.show.svg import Drawn, drawn

__all__ = ["report", "report_on", "write_report"]

PAGE = "report.html"

SKIPPED = 20
"""Of skipped files, how many are named."""


def write_report(runs: Sequence[Path], out: Path | None = None, *, pictures: bool = True, quiet: bool = True) -> Path:
    """Write the page of a run, or one page that compares several.

    Args:
        runs: Directories that finetune, probe or evaluate wrote, at least one.
        out: The page to write, or a directory for it; default: ``report.html`` in the run, or here for several runs.
        pictures: Whether sample pictures, mistakes and heat maps come into the page.
        quiet: No sign of life on a terminal.

    Returns:
        The page.

    Raises:
        CheckpointError: A directory is missing, holds no finished run, or its figures make no sense.
        StorageError: The page cannot be written.
    """
    if not runs:
        raise CheckpointError("there is no run to report on, expected one or more run directories")
    files = [read_run(Path(run)) for run in runs]
    target = Path(out) if out is not None else files[0].run / PAGE if len(files) == 1 else Path(PAGE)
    if target.is_dir():
        target = target / PAGE
    with waiting(progress_console(quiet), "writing the report"):
        try:
            values = _run_page(files[0], pictures=pictures) if len(files) == 1 else compare_runs(files)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            names = ", ".join(str(run) for run in runs)
            raise CheckpointError(
                f"{names}: the figures cannot be understood ({type(error).__name__}: {error}) - were the files edited?"
            ) from error
        template = "run.html.j2" if len(files) == 1 else "comparison.html.j2"
        atomic_write(target, render(template, values))
    return target


def report(config: ReportConfig) -> Path:
    """Do what the verb does: write the page and say where it lies.

    Args:
        config: The options.

    Returns:
        The page.

    Raises:
        TransferkitError: As `write_report` says.
    """
    page = write_report(
        [Path(run) for run in config.runs],
        None if config.out is None else Path(config.out),
        pictures=config.pictures == "on",
        quiet=config.quiet,
    )
    if not config.quiet:
        console = output_console()
        console.print(f"report   {page}", soft_wrap=True)
        console.print(f"size     {page.stat().st_size / 1e6:.1f} MB, one file", soft_wrap=True)
    return page


def report_on(run: Path, *, quiet: bool) -> None:
    """Write a finished run's page, where it has none; a run is not lost because its page cannot be written."""
    page = run / PAGE
    if page.is_file():
        return
    try:
        write_report([run], quiet=quiet)
    except TransferkitError as error:
        warnings.warn(f"no report: {error} - try again by `transferkit report {run}`", TransferkitWarning, stacklevel=3)
        return
    if not quiet:
        print(f"report   {page}")


# ---- one run ----------------------------------------------------------------------------------------------------


def _run_page(files: RunFiles, *, pictures: bool) -> dict[str, Any]:
    """Return everything that the template of one run shows."""
    details = files.details
    task = TaskSections() if details is None else details.sections(files, pictures=pictures)
    phases = facts.phases(files)
    columns = [name for name in (phases[0] if phases else ()) if name != "phase" and any(row[name] for row in phases)]
    return {
        "title": facts.title(files, task.title),
        "kind": files.kind,
        "headline": facts.headline(files, task.sentences),
        "against": facts.against(files),
        "baseline": facts.baseline(files),
        "figures": facts.key_figures(files),
        "phases": phases,
        "phase_columns": columns,
        "curves": _curves(files),
        "measured": files.epochs.measured,
        "history": files.history,
        "followed": [(split, figure) for figure in files.followed for split in ("train", "val")],
        "probe": _probe(files),
        "task": task,
        "data_notes": facts.data_notes(files),
        "likeness": likeness(files),
        "spoilt": [(part, drawn(corruption_chart(part["values"], f"{part['noun']} pictures")))
                   for part in facts.spoilt(files)],
        "skipped": [(files.shown_path(str(row.get("path"))), str(row.get("reason")))
                    for row in files.data.get("skipped") or ()],
        "skipped_shown": SKIPPED,
        "craft": facts.craft(files),
        "environment": facts.environment(files),
        "commands": repeat_commands(files),
        "problems": files.problems,
    }  # fmt: skip


def _curves(files: RunFiles) -> list[Drawn]:
    """Return what training followed, and the LRs, over the epochs."""
    if not files.history:
        return []
    selection = files.metrics.get("selection") or {}
    epoch = -1 if selection.get("kept") == "the solved probe" else number(selection.get("epoch"))
    charts = history_charts(
        files.history, files.plan, files.followed, chosen=None if epoch is None else epoch + 1,
        solved=facts.solved_head(files), val_loss=files.epochs.val_loss,
    )  # fmt: skip
    return [drawn(chart) for chart in charts]


def _probe(files: RunFiles) -> dict[str, Any] | None:
    """Return how a probe was chosen, and its accuracy over depth and over labels."""
    probe = files.metrics.get("probe")
    if not probe:
        return None
    charts = []
    curve, name = probe.get("curve"), next((name for name in CHOSEN if name in probe), None)
    if curve and name:
        charts += path_charts(curve, name, probe[name])
    split = next((split for split in ("val", "test") if split in files.metrics), "val")
    if files.metrics.get("depth"):
        charts.append(depth_chart(files.metrics["depth"], split, files.followed[-1]))
    if files.metrics.get("learning_curve"):
        charts.append(label_chart(files.metrics["learning_curve"], split, files.followed[-1]))
    rows = [(str(key).replace("_", " "), str(value)) for key, value in probe.items()
            if key != "curve" and value is not None]  # fmt: skip
    return {"charts": [drawn(chart) for chart in charts], "facts": rows}
