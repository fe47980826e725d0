"""What `evaluate` prints at the end: figures with their intervals, what goes wrong most, what to type next."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from transferkit.core.csv import read_csv
from transferkit.core.errors import StorageError
from transferkit.core.text import listing, visible
from transferkit.data.scan.records import SPLITS
from transferkit.show.words import accuracy_text, duration, read_metrics

__all__ = ["print_evaluation"]

WORST = 3


def print_evaluation(out: Path, *, console: Console | None = None) -> None:
    """Print a finished evaluation on standard output.

    Args:
        out: The directory that `evaluate` wrote.
        console: Where to print.

    Raises:
        CheckpointError: It has no `metrics.json`.
        StorageError: Another of its files is missing.
    """
    console = console or Console(highlight=False)
    metrics = read_metrics(out)
    data = _data(out / "data.json")
    lines = [("run", f"{metrics['run']} on {metrics['data']}")]
    splits = [name for name in (*SPLITS, "all") if name in metrics]
    for split in splits:
        values = metrics[split]
        mark = "" if len(splits) == 1 else f"{split}: "
        lines += [
            (split, accuracy_text(values)),
            ("", _figures(values)),
            ("worst", mark + _worst(values["per_class"])),
            *([("confused", mark + _confused(values["confusions"]))] if values["confusions"] else []),
        ]
        if split in metrics.get("against", {}):
            lines += _against(metrics["against"][split], mark)
    lines += _caveats(metrics, data)
    lines += [
        ("time", f"{duration(metrics['time_s'])} on {metrics['environment']['device']}"),
        ("written", str(out)),
        ("next", _next(out, metrics)),
    ]
    for name, text in lines:
        console.print(f"{name:<9}{visible(text)}", soft_wrap=True, markup=False)


# ---- figures ----------------------------------------------------------------------------------------------------


def _figures(values: Mapping[str, Any]) -> str:
    before = values.get("uncalibrated")
    told = [f"balanced {values['balanced_acc']:.1%}", f"macro F1 {values['f1_macro']:.1%}"]
    told += [] if values["acc_top5"] is None else [f"top-5 {values['acc_top5']:.1%}"]
    told.append(f"NLL {values['loss']:.3f}" + (f" ({before['loss']:.3f} uncalibrated)" if before else ""))
    told.append(f"ECE {values['ece']:.3f}" + (f" ({before['ece']:.3f} uncalibrated)" if before else ""))
    return ", ".join(told)


def _worst(per_class: Mapping[str, Mapping[str, Any]]) -> str:
    rows = sorted((row["recall"], name, row["n"]) for name, row in per_class.items() if row["n"])
    return ", ".join(f"{name} {recall:.1%} of {count:,}" for recall, name, count in rows[:WORST])


def _confused(rows: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{row['class']} taken for {row['predicted']} {row['n']:,}x" for row in rows[:WORST])


def _against(values: Mapping[str, Any], mark: str) -> list[tuple[str, str]]:
    table, loss = values["table"], values["loss"]
    left = f"; {values['left_out']:,} pictures of classes that it lacks left out" if values["left_out"] else ""
    return [
        ("against", f"{mark}{values['verdict']}{left}"),
        ("", f"both right {table['both_right']:,}, only this run {table['only_first']:,}, only the other "
             f"{table['only_second']:,}, both wrong {table['both_wrong']:,}; NLL difference {loss['difference']:+.3f} "
             f"({loss['ci'][0]:+.3f} to {loss['ci'][1]:+.3f}), lower is better"),
    ]  # fmt: skip


# ---- what must be known about them ------------------------------------------------------------------------------


def _caveats(metrics: Mapping[str, Any], data: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    if metrics["seen_in_training"]:
        found.append(("seen", f"the run was trained on {metrics['seen_in_training']:,} of these pictures"))
    if metrics["seen_in_val"]:
        fitted = metrics.get("calibration", {}).get("fitted_on") == "val"
        what = "calibrated on" if fitted else "validated on"
        crossed = "; its own metrics.json has cross-fitted figures" if fitted else ""
        found.append(("seen", f"the run was {what} {metrics['seen_in_val']:,} of these pictures{crossed}"))
    left = metrics["left_out"]
    if left["seen_in_training"]:
        found.append(("left out", f"{left['seen_in_training']:,} pictures that the run was trained on"))
    if left["unreadable"]:
        found.append(("left out", f"{left['unreadable']:,} unreadable pictures, listed in data.json"))
    if data["unknown_classes"]:
        told = [f"{name} ({count:,})" for name, count in data["unknown_classes"].items()]
        found.append(("left out", f"{left['unknown_classes']:,} pictures of classes that the model lacks: "
                                  f"{listing(told, quote=False)}"))  # fmt: skip
    if data["missing_classes"]:
        found.append(("no data", f"for classes of the model: {listing(data['missing_classes'], quote=False)}"))
    return found


def _next(out: Path, metrics: Mapping[str, Any]) -> str:
    run = shlex.quote(metrics["run"])
    if "calibration" not in metrics:
        return f"transferkit calibrate {run} DATA (its probabilities are not calibrated; give it pictures of their own)"
    wrong = [row for row in read_csv(out / "predictions.csv") if row["label"] != row["predicted"]]
    if not wrong:
        return f"transferkit predict {run} PICTURE..."
    surest = max(wrong, key=lambda row: float(row["probability"]))
    return (
        f"transferkit explain {run} {shlex.quote(surest['path'])} --out explained"
        f" (the surest mistake: {surest['label']} taken for {surest['predicted']}, {float(surest['probability']):.0%})"
    )


def _data(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        raise StorageError(f"{path}: cannot be read ({error}) - evaluate again") from error
