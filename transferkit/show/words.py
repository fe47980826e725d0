"""What is printed at the end: accuracy with its interval, time, where things lie, what to type next."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from transferkit.core.errors import CheckpointError

PLOTS = ("path.png", "depth.png", "learning_curve.png")

__all__ = ["accuracy_text", "duration", "print_probe", "print_summary", "read_metrics"]


def read_metrics(run: Path) -> dict[str, Any]:
    """Return a run's `metrics.json`.

    Raises:
        CheckpointError: It is missing or not JSON.
    """
    path = run / "metrics.json"
    try:
        return json.loads(path.read_text())  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}) - run `finetune` again") from error


def print_summary(run: Path, *, note: str = "", console: Console | None = None) -> None:
    """Print a finished run on standard output.

    Args:
        run: The run directory.
        note: Put into the title, such as "already complete".
        console: Where to print.
    """
    console = console or Console(highlight=False)
    metrics = read_metrics(run)
    table = Table(title=f"{run}" + (f" ({note})" if note else ""), title_justify="left", title_style="bold")
    for column in ("phase", "epochs", "train acc", "val acc", "images/s", "time"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for phase in metrics["phases"]:
        table.add_row(
            phase["name"], str(phase["epochs"] or "solved"), _percent(phase["train_acc"]), _percent(phase["val_acc"]),
            _rate(phase.get("images_per_s")), duration(phase["time_s"]),
        )  # fmt: skip
    console.print(table)
    for split in ("val", "test"):
        if split in metrics:
            console.print(f"{split:<9}{accuracy_text(metrics[split])}{_selection(split, metrics)}", soft_wrap=True)
    for line in _craft(metrics):
        console.print(line, soft_wrap=True)
    made_on = metrics["environment"]
    precision = f", precision {made_on['precision']}" if "precision" in made_on else ""
    console.print(f"time     {duration(metrics['time_s'])} on {made_on['device']}{precision}", soft_wrap=True)
    console.print(f"model    {run / 'model.safetensors'}", soft_wrap=True)
    if (run / "curves.png").is_file():
        console.print(f"curves   {run / 'curves.png'}", soft_wrap=True)
    console.print(f"next     transferkit predict {shlex.quote(str(run))} PICTURE...", soft_wrap=True)


def accuracy_text(values: Mapping[str, Any]) -> str:
    """Return a split's accuracy in words, with its interval and number of pictures."""
    low, high = values["acc_ci"]
    return f"{values['acc']:.1%} accuracy (95 % interval {low:.1%} to {high:.1%}, {values['n']} pictures)"


def _craft(metrics: Mapping[str, Any]) -> list[str]:
    """Return what was done to the weights after the last step, a line each."""
    found = []
    if "interpolation" in metrics:
        mixed = metrics["interpolation"]
        ends = f"{_percent(mixed['val_acc'][0])} at 0, {_percent(mixed['val_acc'][-1])} at 1"
        found.append(f"mixed    {mixed['alpha']:g} of the fine-tuned weights, chosen on val ({ends})")
    if "recalibrated_bn" in metrics:
        found.append(f"bn       {metrics['recalibrated_bn']} layers measured by one pass over the training pictures")
    for split, values in metrics.get("snapshots", {}).items():
        alone = values["each_acc"]
        apart = f"{_percent(min(alone))} to {_percent(max(alone))}"
        found.append(f"snapshots {split} {_percent(values['acc'])} together, {len(alone)} alone {apart}")
    return found


def _selection(split: str, metrics: Mapping[str, Any]) -> str:
    if split == "test":
        return ", looked at once"
    selection = metrics["selection"]
    if selection["monitor"] is None:
        return ", nothing chosen on it"
    if selection["epoch"] is None:
        return f", {selection['kept']} chosen by {selection['monitor']}"
    return f", best epoch {selection['epoch'] + 1} chosen by {selection['monitor']}"


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.1%}"


def duration(seconds: float) -> str:
    """Return seconds in the unit a person would use."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def print_probe(run: Path, *, console: Console | None = None) -> None:
    """Print a finished probe on standard output.

    Args:
        run: The run directory.
        console: Where to print.
    """
    console = console or Console(highlight=False)
    metrics = read_metrics(run)
    probe, features = metrics["probe"], metrics["features"]
    chosen = ", ".join(f"{name} = {probe[name]:.3g}" for name in ("C", "k") if name in probe)
    lines = [
        ("run", str(run)),
        ("probe", f"{probe['classifier']} on {features['backbone']} {probe['layer']}"
                  + (f", {chosen} ({probe['criterion']})" if chosen else "")),
        ("features", f"{features['computed']:,} computed, the others kept before; {duration(features['time_s'])}, "
                     f"precision {features['precision']}"),
        ("fit", f"{duration(metrics['phases'][0]['time_s'])}, train accuracy {metrics['phases'][0]['train_acc']:.1%}"),
        *((split, accuracy_text(metrics[split])) for split in ("val", "test") if split in metrics),
        *(("depth", f"{row['layer']:<12}{row['acc']:.1%} ({row['acc_low']:.1%} to {row['acc_high']:.1%})")
          for row in metrics.get("depth", ())),
        *(("labels", f"{row['rows']:>7,.0f} {row['acc']:.1%} ({row['acc_min']:.1%} to {row['acc_max']:.1%})")
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
    for name, text in lines:
        console.print(f"{name:<9}{text}", soft_wrap=True, markup=False)
