"""The table at the end of a run: phases, accuracy with its interval, time, where the model lies, what to type next."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from transferkit.errors import CheckpointError

__all__ = ["print_summary", "read_metrics"]


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
            phase["name"], str(phase["epochs"]), _percent(phase["train_acc"]), _percent(phase["val_acc"]),
            f"{phase['images_per_s']:,.0f}", _duration(phase["time_s"]),
        )  # fmt: skip
    console.print(table)
    for split in ("val", "test"):
        if split in metrics:
            console.print(f"{split:<9}{_accuracy(metrics[split])}{_selection(split, metrics)}", soft_wrap=True)
    console.print(f"time     {_duration(metrics['time_s'])} on {metrics['environment']['device']}", soft_wrap=True)
    console.print(f"model    {run / 'model.safetensors'}", soft_wrap=True)
    console.print(f"curves   {run / 'curves.png'}", soft_wrap=True)
    console.print(f"next     transferkit predict {shlex.quote(str(run))} PICTURE...", soft_wrap=True)


def _accuracy(values: Mapping[str, Any]) -> str:
    low, high = values["acc_ci"]
    return f"{values['acc']:.1%} accuracy (95 % interval {low:.1%} to {high:.1%}, {values['n']} pictures)"


def _selection(split: str, metrics: Mapping[str, Any]) -> str:
    if split == "test":
        return ", looked at once"
    selection = metrics["selection"]
    return f", best epoch {selection['epoch'] + 1} chosen by {selection['monitor']}"


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.1%}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
