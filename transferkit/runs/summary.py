"""The end of a run in the terminal: figures with their intervals, time, where things lie, what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from transferkit.core.text import listing, visible
from transferkit.data.index.index import ImageIndex
from transferkit.data.scan.columns import number
from transferkit.models.figures.figure import Figure
from transferkit.runs.files import CHOSEN, RunFiles
from transferkit.show.progress import output_console
from transferkit.show.words import duration, mid_sentence, value_text

__all__ = ["data_lines", "figures_text", "headline_text", "print_lines", "print_probe", "print_summary"]

PLOTS = ("path.png", "depth.png", "learning_curve.png")


def print_lines(console: Console, lines: Sequence[tuple[str, str]]) -> None:
    """Print lines of text, each behind its name."""
    for name, text in lines:
        console.print(f"{name:<8} {visible(text)}", soft_wrap=True)


def data_lines(index: ImageIndex) -> list[tuple[str, str]]:
    """Return what was understood of a data set: pictures, classes and splits, and what is worth knowing of them."""
    counts, targets = index.counts(), index.targets
    splits = ", ".join(f"{len(index.split(split)):,} {split}" for split in counts)
    names = targets.stratum_names if targets.stratum_names == targets.spec.names else ()
    classes = f" of {len(names):,} classes ({listing(names, quote=False)})" if names else ""
    lines = [("data", f"{len(index.records):,} pictures{classes}: {splits}")]
    if names and all(number(name) is not None for name in names):
        flag = "" if Path(index.root).is_dir() else " --label-column label"
        lines.append(("classes", f"their names are numbers: to learn them as numbers pass --task regression{flag}"))
    lines += [("note", note) for note in index.notes]
    if "val" not in counts:
        lines.append(("no val", "no picture to validate on: the training loss chooses the epoch; not calibrated"))
    if "test" not in counts:
        lines.append(("no test", "no picture to test on: all figures are of pictures that something was chosen on"))
    return lines


def headline_text(figures: Sequence[Figure], count: int) -> str:
    """Return the headline of a split in words, with its interval and number of pictures."""
    figure = figures[0]
    bounds = figure.interval
    known = f"95 % interval {' to '.join(value_text(bound, figure.unit) for bound in bounds)}, " if bounds else ""
    counted = "1 picture" if count == 1 else f"{count} pictures"
    return f"{value_text(figure.value, figure.unit)} {mid_sentence(figure.label)} ({known}{counted})"


def figures_text(figures: Sequence[Figure], before: Mapping[str, float]) -> str:
    """Return the other figures of all pictures in a line, with what they were before calibration.

    Args:
        figures: Of a split, the headline first.
        before: Values without calibration, by key; empty where there is none.
    """
    return ", ".join(
        f"{mid_sentence(figure.label)} {value_text(figure.value, figure.unit)}"
        + (f" ({value_text(before[figure.key], figure.unit)} uncalibrated)" if figure.key in before else "")
        for figure in figures[1:]
        if figure.of is None and figure.value is not None
    )


def print_summary(run: Path, *, note: str = "", console: Console | None = None) -> None:
    """Print a finished run on standard output.

    Args:
        run: The run directory.
        note: Put into the title, such as "already complete".
        console: Where to print.
    """
    console = console or output_console()
    files = RunFiles(run)
    metrics = files.metrics
    table = Table(title=f"{run}" + (f" ({note})" if note else ""), title_justify="left", title_style="bold")
    shown = [
        (split, figure)
        for split in ("train", "val")
        # the first figure besides the loss that the phases have of this split; of numbers, training knows the loss
        for figure in next(
            ([one] for one in (*files.followed[1:2], *files.followed[:1])
             if any(f"{split}_{one.key}" in phase for phase in metrics["phases"])), files.followed[1:2])
    ]  # fmt: skip
    # Epochs are measured over all targets, in deviations; the headline of a single one is in its own unit.
    heads = [f"{split} {figure.key}" + " (sd)" * (figure.unit == "deviations") for split, figure in shown]
    for column in ("phase", "epochs", *heads, "images/s", "time"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for phase in metrics["phases"]:
        values = [value_text(phase.get(f"{split}_{figure.key}"), figure.unit) for split, figure in shown]
        rate = phase.get("images_per_s")
        table.add_row(
            phase["name"], str(phase["epochs"] or "solved"), *values, "" if rate is None else f"{rate:,.0f}",
            duration(phase["time_s"]),
        )  # fmt: skip
    console.print(table)
    machine = metrics["environment"]
    precision = f", precision {machine['precision']}" if "precision" in machine else ""
    print_lines(
        console,
        [
            *((split, headline_text(files.figures(split), metrics[split]["n"]) + _selection(split, metrics))
              for split in ("val", "test") if split in metrics),
            *_craft(metrics, files.followed[1:2]),
            ("time", f"{duration(metrics['time_s'])} on {machine['device']}{precision}"),
            ("model", str(run / "model.safetensors")),
            *([("curves", str(run / "curves.png"))] if (run / "curves.png").is_file() else []),
            ("next", f"transferkit predict {shlex.quote(str(run))} PICTURE..."),
        ],
    )  # fmt: skip


def _craft(metrics: Mapping[str, Any], followed: Sequence[Figure]) -> list[tuple[str, str]]:
    """Return what was done to the weights after the last step, a line each."""
    lines = []
    key, unit = (followed[0].key, followed[0].unit) if followed else ("loss", "")
    if "interpolation" in metrics:
        mixed = metrics["interpolation"]
        ends = ", ".join(f"{value_text(mixed[f'val_{key}'][at], unit)} at {alpha}" for at, alpha in ((0, 0), (-1, 1)))
        lines.append(("mixed", f"{mixed['alpha']:g} of the fine-tuned weights, chosen on val ({ends})"))
    if "recalibrated_bn" in metrics:
        lines.append(("bn", f"{metrics['recalibrated_bn']} layers measured by one pass over the training pictures"))
    for split, values in metrics.get("snapshots", {}).items():
        alone = values[f"each_{key}"]
        apart = f"{value_text(min(alone), unit)} to {value_text(max(alone), unit)}"
        together = value_text(values[key], unit)
        lines.append(("snapshots", f"{split} {together} together, {len(alone)} alone {apart}"))
    return lines


def _selection(split: str, metrics: Mapping[str, Any]) -> str:
    if split == "test":
        return ", looked at once"
    selection = metrics["selection"]
    if selection["monitor"] is None:
        return ", nothing chosen on it"
    clarity = selection.get("clarity")
    if clarity is not None:
        kept = "the solved probe" if selection["epoch"] is None else f"epoch {selection['epoch'] + 1}"
        return f", {kept} kept: loss {-clarity['gain']:+.3f} against {clarity['over']}{_interval(clarity)}"
    if selection["epoch"] is None:
        return f", {selection['kept']} chosen by {selection['monitor']}"
    return f", best epoch {selection['epoch'] + 1} chosen by {selection['monitor']}"


def _interval(clarity: Mapping[str, Any]) -> str:
    """Return how far the change of the loss reaches; nothing where it is of one picture."""
    if clarity["gain_ci"] is None:
        return ""
    low, high = clarity["gain_ci"]
    return f" ({-high:+.3f} to {-low:+.3f})"


def print_probe(run: Path, *, console: Console | None = None) -> None:
    """Print a finished probe on standard output.

    Args:
        run: The run directory.
        console: Where to print.
    """
    console = console or output_console()
    files = RunFiles(run)
    metrics = files.metrics
    measured = [split for split in ("val", "test") if split in metrics]
    probe, features, fitted = metrics["probe"], metrics["features"], metrics["phases"][0]
    chosen = ", ".join(f"{name} = {_chosen_text(probe[name])}" for name in CHOSEN if name in probe)
    figure = files.followed[-1]
    lines = [
        ("run", str(run)),
        ("probe", f"{probe['classifier']} on {features['backbone']} {probe['layer']}"
                  + (f", {chosen} ({probe['criterion']})" if chosen else "")),
        *([("added to", f"{probe['added_to']} ({probe['pictures_before']:,} training pictures), new classes: "
                        f"{listing(probe['new_classes'], quote=False) or 'none'}")] if "added_to" in probe else []),
        ("features", f"{features['computed']:,} computed, the others kept before; {duration(features['time_s'])}, "
                     f"precision {features['precision']}"),
        ("fit", ", ".join([duration(fitted["time_s"]), *(
            f"train {mid_sentence(figure.label)} {value_text(fitted[f'train_{figure.key}'], figure.unit)}"
            for figure in files.followed if f"train_{figure.key}" in fitted)])),
        *((split, headline_text(files.figures(split), metrics[split]["n"])) for split in measured),
        *(("depth", f"{row['layer']:<12}{_reaching(row, figure, 'low', 'high')}") for row in metrics.get("depth", ())),
        *(("labels", f"{row['rows']:>7,.0f} {_reaching(row, figure, 'min', 'max')}")
          for row in metrics.get("learning_curve", ())),
        *(("plot", str(run / name)) for name in PLOTS if (run / name).is_file()),
    ]  # fmt: skip
    if probe["exported"] == "yes":
        lines += [("model", str(run / "model.safetensors")),
                  ("next", f"transferkit predict {shlex.quote(str(run))} PICTURE...")]  # fmt: skip
    else:
        lines.append(("model", str(probe["exported"])))
        if probe.get("kept") == "yes":
            lines += [("kept", str(run / "classifier.skops")),
                      ("next", f"transferkit export {shlex.quote(str(run))} --format skops")]  # fmt: skip
    print_lines(console, lines)


def _reaching(row: Mapping[str, Any], figure: Figure, *ends: str) -> str:
    """Return a probe's figure, with how far it reaches."""
    value, low, high = (
        value_text(row[key], figure.unit) for key in (figure.key, *(f"{figure.key}_{end}" for end in ends))
    )
    return f"{value} ({low} to {high})"


def _chosen_text(value: float | Sequence[float | None]) -> str:
    """Return a strength, or the range of those of several labels or targets, in words."""
    values = [one for one in (value if isinstance(value, Sequence) else [value]) if one is not None]
    if not values:
        return "n/a"
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"
