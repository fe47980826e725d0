"""Several labels per picture: collages of two to four clothing photos, and what the probe and fine-tuning make of them.

    python tests/bench/collages.py --data clothing/ --weights resnet18.safetensors [--pictures 3000] [--epochs 4]

Collages of train are of train photos, those of val of one half of the val photos and those of test of the other.
Prints a table: mean average precision and, by thresholds, F1 on val, where the thresholds were chosen, and on test; and
how far the solved probe is from scikit-learn's `OneVsRestClassifier` on the same features. Finished runs are not
repeated.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import machine
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler

import transferkit as tk
from transferkit.cli.main import main
from transferkit.features.linear.labels import LabelSolver
from transferkit.models.heads.solver import LabelledRows, ProbeOptions

SIDE = 64
"""Of a photo; a collage is twice as wide and high."""


def collages(data: Path, out: Path, count: int, seed: int = 0) -> Path:
    """Make collages and the manifest that lists their labels; a tenth each of val and test. Returns the manifest."""
    manifest = out / "labels.csv"
    if manifest.exists():
        return manifest
    rng = np.random.default_rng(seed)
    rows: list[tuple[str, str, str]] = []
    train, held = (sorted(path for path in (data / name).glob("*/*") if path.is_file()) for name in ("train", "val"))
    sources = {"train": train, "val": held[::2], "test": held[1::2]}
    for split, photos in sources.items():
        many = count - 2 * (count // 10) if split == "train" else count // 10
        (out / split).mkdir(parents=True, exist_ok=True)
        for number in range(many):
            chosen = rng.choice(len(photos), int(rng.integers(2, 5)), replace=False)
            page = Image.new("RGB", (2 * SIDE, 2 * SIDE), (128, 128, 128))
            for place, at in zip(rng.permutation(4), chosen, strict=False):
                with Image.open(photos[at]) as photo:
                    page.paste(photo.convert("RGB").resize((SIDE, SIDE)), (SIDE * (place % 2), SIDE * (place // 2)))
            name = f"{split}/{number:05}.png"
            page.save(out / name)
            rows.append((name, "|".join(sorted({photos[at].parent.name for at in chosen})), split))
    with manifest.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "labels", "split"), *rows])
    return manifest


def run(words: list[str], out: Path) -> dict[str, Any]:
    """Run a verb that writes a directory, once. Returns its metrics."""
    if not (out / "metrics.json").exists():
        status = main([*words, "--out", str(out), "--quiet", "--report", "off"])
        if status:
            raise SystemExit(status)
    return dict(json.loads((out / "metrics.json").read_text(encoding="utf-8")))


def against_scikit(manifest: Path, weights: str, size: int, store: Path) -> str:
    """Compare the solver with one `LogisticRegression` per label at the strengths it chose."""
    X, y = {}, {}
    with manifest.open(encoding="utf-8", newline="") as file:
        listed = list(csv.DictReader(file))
    names = sorted({name for row in listed for name in row["labels"].split("|")})
    for split in ("train", "val"):
        mine = [row for row in listed if row["split"] == split]
        y[split] = np.array([[name in row["labels"].split("|") for name in names] for row in mine])
        extractor = tk.FeatureExtractor("resnet18", weights=weights, image_size=size, cache=str(store))
        X[split] = extractor.fit_transform([str(manifest.parent / row["path"]) for row in mine])
    rows = LabelledRows(X["train"], y["train"].astype(np.float32), len(names))
    started = time.perf_counter()
    fitted = LabelSolver().fit(rows, ProbeOptions())
    took = time.perf_counter() - started
    scaler = StandardScaler().fit(X["train"].astype(np.float64))
    Z = {split: scaler.transform(values.astype(np.float64)) for split, values in X.items()}
    theirs = np.empty(y["val"].shape)
    for at, strength in enumerate(fitted.choice["C"]):
        one = OneVsRestClassifier(LogisticRegression(C=strength, max_iter=5000, tol=1e-8))
        theirs[:, at] = one.fit(Z["train"], y["train"][:, [at]]).predict_proba(Z["val"])[:, -1]
    ours = 1 / (1 + np.exp(-fitted.outputs(X["val"].astype(np.float64)).astype(np.float64)))
    maps = [average_precision_score(y["val"], probs) for probs in (ours, theirs)]
    return (
        f"probe against OneVsRestClassifier: largest difference of a probability {np.abs(ours - theirs).max():.1e}, "
        f"mAP {maps[0]:.5f} and {maps[1]:.5f}; {len(names)} labels fitted in {took:.1f} s"
    )


def row(title: str, run: Path, manifest: Path) -> str:
    """A row of the table: figures of a run on val and test, by scikit-learn from what the model predicts."""
    with manifest.open(encoding="utf-8", newline="") as file:
        listed = list(csv.DictReader(file))
    model = json.loads((run / "model.json").read_text(encoding="utf-8"))
    names, chosen = model["classes"], np.array(model["calibration"]["thresholds"])
    cells = []
    for split in ("val", "test"):
        mine = [one for one in listed if one["split"] == split]
        truth = np.array([[name in one["labels"].split("|") for name in names] for one in mine])
        records = tk.load(run).predict([str(manifest.parent / one["path"]) for one in mine])
        probs = np.array([record.probs for record in records])
        scores = [f1_score(truth, probs >= limits, average="macro", zero_division=0) for limits in (0.5, chosen)]
        exact = [(truth == (probs >= limits)).all(axis=1).mean() for limits in (0.5, chosen)]
        cells += [f"{average_precision_score(truth, probs):.3f}", *(f"{score:.3f}" for score in scores),
                  *(f"{share:.1%}" for share in exact)]  # fmt: skip
    return f"| {title} | {' | '.join(cells)} |"


def compare() -> None:
    """Print a line per result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--pictures", type=int, default=3000)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--tune-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=4, help="of fine-tuning; 0 leaves it out")
    parser.add_argument("--out", default="runs/collages", type=Path)
    options = parser.parse_args()
    manifest = collages(options.data, options.out / "pictures", options.pictures)
    common = ["finetune", "--data", str(manifest), "--backbone", "resnet18", "--weights", options.weights,
              "--probe-views", "0", "--store", str(options.out / "store")]  # fmt: skip
    jobs = {f"probe at {size} px": ["--phases", "probe", "--image-size", str(size)]
            for size in {options.image_size: 0, options.tune_size: 0}}  # fmt: skip
    if options.epochs:
        jobs[f"probe-finetune at {options.tune_size} px"] = [
            "--phases", "probe-finetune", "--epochs", str(options.epochs), "--augment", "light", "--image-size",
            str(options.tune_size),
        ]  # fmt: skip
    ways = [f"{split}: {what}" for split in ("val", "test")
            for what in ("mAP", "macro F1 at 0.5", "at thresholds", "all right at 0.5", "at thresholds")]  # fmt: skip
    print(f"{machine()}\n\n| | {' | '.join(ways)} |\n|{'---|' * (1 + len(ways))}")
    for title, words in jobs.items():
        metrics = run([*common, *words], options.out / title.replace(" ", "-"))
        print(row(f"{title}, {metrics['time_s']:.0f} s", options.out / title.replace(" ", "-"), manifest), flush=True)
    print(against_scikit(manifest, options.weights, options.image_size, options.out / "store"))


if __name__ == "__main__":
    compare()
