"""Ordinal grades on real photos: numbers that are rounded beside classes, by quadratic-weighted kappa.

    python tests/bench/grades.py CELLS --weights resnet18.safetensors [--out runs/grades] [--epochs 0]

CELLS holds `counts.csv` with columns `path,split,red`. Grades 0 to 4 are fifths of the training photos by their red
cells; `OUT/grades.csv` holds them. Both ways use the same features; every row is measured on val.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from sklearn.metrics import cohen_kappa_score

import transferkit as tk
from transferkit.core.csv import read_csv
from transferkit.training.finetune import Run

GRADES = 5


def graded(cells: Path, out: Path) -> Path:
    """Write `grades.csv`, and return its path."""
    rows = read_csv(cells / "counts.csv")
    red = np.array([float(row["red"]) for row in rows])
    trained = np.array([row["split"] == "train" for row in rows])
    edges = np.quantile(red[trained], np.arange(1, GRADES) / GRADES)
    out.mkdir(parents=True, exist_ok=True)
    manifest = out / "grades.csv"
    with manifest.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "split", "grade"))
        for row, grade in zip(rows, np.searchsorted(edges, red), strict=True):
            writer.writerow((row["path"], row["split"], int(grade)))
    return manifest


def line(name: str, run: Run) -> None:
    """Print a row: figures of rounded grades by scikit-learn from `predictions.csv`, and the kappa that we say."""
    rows = [row for row in read_csv(run.path / "predictions.csv") if row["split"] == "val"]
    asked = "target" if "target" in rows[0] else "label"
    true, predicted = (np.array([float(row[key]) for row in rows]) for key in (asked, "predicted"))
    nearest = np.clip(predicted.round(), 0, GRADES - 1)
    kappa = cohen_kappa_score(true.astype(int), nearest.astype(int), weights="quadratic")
    figure = next(one for one in run.metrics["val"]["figures"] if one["key"] == "kappa")
    low, high = figure["ci"]
    print(
        f"| {name} | {figure['value']:.3f} ({low:.3f} to {high:.3f}) | {kappa:.3f} | {(nearest == true).mean():.1%} | "
        f"{(np.abs(nearest - true) <= 1).mean():.1%} | {np.abs(nearest - true).mean():.3f} |",
        flush=True,
    )


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--out", type=Path, default=Path("runs/grades"))
    parser.add_argument("--epochs", type=int, default=0, help="of fine-tuning; 0 leaves it out")
    options = parser.parse_args()
    manifest = graded(options.cells, options.out)
    phases = {"probe": "solved probe"} | ({"probe-finetune": "probe-finetune"} if options.epochs else {})
    ways = {"numbers, rounded": {"targets": "grade"}, "classes": {"label_column": "grade"}}
    print("| | kappa on val | by scikit-learn | exact | at most one off | mean distance |\n|---|---|---|---|---|---|")
    for phase, words in phases.items():
        for way, how in ways.items():
            run = tk.finetune(
                **how, data=str(manifest), root=str(options.cells), backbone="resnet18", weights=options.weights,
                image_size=options.image_size, phases=phase, probe_views=0, seed=0, precision="32", lr=3e-4,
                epochs=options.epochs or 1, out=str(options.out / f"{phase}-{way.partition(',')[0]}"),
                store=str(options.out / "store"), quiet=True, report="off", overwrite=True,
            )  # fmt: skip
            line(f"{words}, {way}", run)


if __name__ == "__main__":
    main()
