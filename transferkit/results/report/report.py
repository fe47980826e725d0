"""`report.html`: one self-contained page about a run, or about several side by side; no network, no foreign script."""

from __future__ import annotations

import base64
import hashlib
import warnings
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.console import Console

from transferkit import __version__
from transferkit.core.errors import CheckpointError, TransferkitError, TransferkitWarning
from transferkit.core.files import atomic_write
from transferkit.core.text import visible
from transferkit.options.results import ReportConfig
from transferkit.results.explain.thumbnails import mistake_pictures, sample_pictures
from transferkit.results.report import charts, classes, facts
from transferkit.results.report.command import repeat_commands
from transferkit.results.report.compare import compare_runs
from transferkit.results.report.svg import ACCENT, DASHES, MUTED, SECOND, Chart
from transferkit.runs.files import RunFiles, number, read_run
from transferkit.show.progress import progress_console, waiting

__all__ = ["report", "report_on", "write_report"]

PAGE = "report.html"
TEMPLATES = "templates"

MISTAKES = 12
SKIPPED = 20
"""Of skipped files, how many are named."""

POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src '{script}'; base-uri 'none'; "
    "form-action 'none'"
)
"""Nothing is fetched and no script runs but the page's own, whatever a class is called."""


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
            told = ", ".join(str(run) for run in runs)
            raise CheckpointError(
                f"{told}: the figures cannot be understood ({type(error).__name__}: {error}) - were the files edited?"
            ) from error
        template = "run.html.j2" if len(files) == 1 else "comparison.html.j2"
        atomic_write(target, _render(template, values))
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
        console = Console(highlight=False)
        console.print(f"report   {page}", soft_wrap=True, markup=False)
        console.print(f"size     {page.stat().st_size / 1e6:.1f} MB, one file", soft_wrap=True, markup=False)
    return page


# ---- one run ----------------------------------------------------------------------------------------------------


def _run_page(files: RunFiles, *, pictures: bool) -> dict[str, Any]:
    """Return everything that the template of one run shows."""
    split = files.splits[0] if files.splits else None
    measured = files.metrics[split] if split is not None else {}
    calibrated = facts.calibration(measured, files.metrics.get("calibration") or {})
    wrong = classes.mistakes(files, MISTAKES)
    rows = classes.per_class(measured)
    hardest = sorted(rows, key=lambda row: (row["recall"] is None, row["recall"]))
    phases = facts.phases(files)
    samples = None
    if pictures and (files.pictures or files.predictions):
        names = [row["name"] for row in hardest] or files.class_names
        samples = sample_pictures(files.pictures or files.predictions, names)
    if wrong is not None:
        shown = mistake_pictures(wrong["rows"], files.model_run) if pictures and wrong["rows"] else None
        wrong |= {"shown": shown, "asked": pictures}
    return {
        "title": facts.title(files),
        "kind": files.kind,
        "split": split,
        "noun": facts.NOUNS.get(split or "", ""),
        "headline": facts.headline(files),
        "against": facts.against(files),
        "baseline": facts.baseline(files),
        "figures": facts.key_figures(files),
        "phases": phases,
        "phase_columns": [name for name in (phases[0] if phases else ()) if name != "phase"
                          and any(row[name] for row in phases)],
        "curves": _curves(files),
        "history": files.history,
        "probe": _probe(files),
        "classes": rows,
        "confusion": classes.confusion(measured),
        "calibration": calibrated,
        "reliability": charts.reliability_chart(calibrated["bins"], facts.NOUNS[str(split)]) if calibrated else None,
        "few": charts.FEW,
        "mistakes": wrong,
        "counts": classes.class_counts(files),
        "skipped_shown": SKIPPED,
        "samples": samples,
        "craft": facts.craft(files),
        "environment": facts.environment(files),
        "commands": repeat_commands(files),
        "problems": files.problems,
    }  # fmt: skip


def _curves(files: RunFiles) -> list[Chart]:
    """Return loss, accuracy and LRs over the epochs."""
    if not files.history:
        return []
    phases = facts.phase_spans(files)
    epochs = [row["epoch"] + 1 for row in files.history]
    selection = files.metrics.get("selection") or {}
    kept = None if number(selection.get("epoch")) is None else selection["epoch"] + 1
    solved = facts.solved_probe(files)
    found = []
    for key, title, percent in (("loss", "Loss", False), ("acc", "Accuracy", True)):
        lines = [charts.Line(split, epochs, [row.get(f"{split}_{key}") for row in files.history], colour)
                 for split, colour in (("train", SECOND), ("val", ACCENT))
                 if any(row.get(f"{split}_{key}") is not None for row in files.history)]  # fmt: skip
        before = number(solved.get(f"val_{key}"))
        marks = [] if before is None else [(0.0, before, ACCENT)]
        if lines:
            last = ", ".join(f"{line.name} ends at {facts.percent(line.y[-1]) if percent else line.y[-1]:.4}"
                             for line in lines if line.y[-1] is not None)  # fmt: skip
            found.append(charts.lines_chart(
                key, title, lines, percent=percent, phases=phases, marks=marks, kept=kept,
                description=f"{title} over {len(epochs)} epochs; {last}",
            ))  # fmt: skip
    rates = charts.rates_chart(files.plan, [span for span in phases if span[1] >= 0])  # a solved phase has no LR
    return found + ([rates] if rates is not None else [])


def _probe(files: RunFiles) -> dict[str, Any] | None:
    """Return how a probe was chosen, and its accuracy over depth and over labels."""
    probe = files.metrics.get("probe")
    if not probe:
        return None
    drawn = []
    curve, name = probe.get("curve"), next((name for name in ("C", "k") if name in probe), None)
    if curve and name:
        drawn.append(charts.path_chart(curve, name, number(probe[name])))
    split = next((split for split in ("val", "test") if split in files.metrics), "val")
    if files.metrics.get("depth"):
        drawn.append(charts.depth_chart(files.metrics["depth"], split))
    rows = files.metrics.get("learning_curve")
    if rows:
        x = [row["rows"] for row in rows]
        lines = [charts.Line("mean", x, [row["acc"] for row in rows]),
                 *(charts.Line(f"{name} of the draws", x, [row[key] for row in rows], MUTED, DASHES[1])
                   for name, key in (("lowest", "acc_min"), ("highest", "acc_max")))]  # fmt: skip
        drawn.append(charts.lines_chart(
            "labels", f"Accuracy over labelled pictures ({split})", lines, percent=True,
            xlabel="labelled training pictures",
            description=f"Accuracy on {split} over {len(rows)} amounts of labels, from {rows[0]['acc']:.1%} with "
                        f"{rows[0]['rows']:,.0f} to {rows[-1]['acc']:.1%} with {rows[-1]['rows']:,.0f}",
        ))  # fmt: skip
    told = [(str(key).replace("_", " "), str(value)) for key, value in probe.items()
            if key != "curve" and value is not None]  # fmt: skip
    return {"charts": drawn, "facts": told}


# ---- page -------------------------------------------------------------------------------------------------------


def _render(template: str, values: dict[str, Any]) -> str:
    folder = resources.files("transferkit.results") / TEMPLATES
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = {
        "policy": POLICY.format(script=f"sha256-{digest}"),
        "style": Markup(style),
        "script": Markup(script),
        "version": __version__,
    }
    return _environment().get_template(template).render(page=page, **values)


@cache
def _environment() -> Environment:
    """Everything is escaped and every name must be known; compiled once."""
    environment = Environment(
        loader=PackageLoader("transferkit.results", TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = facts.percent
    return environment


def report_on(run: Path, *, quiet: bool) -> None:
    """Write a finished run's page, where it has none; a run is not lost because its page cannot be written."""
    page = run / "report.html"
    if page.is_file():
        return
    try:
        write_report([run], quiet=quiet)
    except TransferkitError as error:
        warnings.warn(f"no report: {error} - try again by `transferkit report {run}`", TransferkitWarning, stacklevel=3)
        return
    if not quiet:
        print(f"report   {page}")
