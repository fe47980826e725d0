"""Several labels per picture: collages of two to four clothing photos, and what the probe and fine-tuning make of them.

    python tests/bench/collages.py --data clothing/ --weights resnet18.safetensors [--pictures 3000] [--epochs 4]

Collages of val are of val photos. Prints mean average precision of both, how far the solved probe is from
scikit-learn's `OneVsRestClassifier` on the same features, and what thresholds per label do for F1. Finished runs are
not repeated.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler

import transferkit as tk
from transferkit.cli.main import main
from transferkit.features.linear.labels import LabelSolver
from transferkit.models.solver import LabelledRows, ProbeOptions

SIDE = 64
"""Of a photo; a collage is twice as wide and high."""


def collages(data: Path, out: Path, count: int, seed: int = 0) -> Path:
    """Make collages and the manifest that lists their labels; a fifth of them are of val. Returns the manifest."""
    manifest = out / "labels.csv"
    if manifest.exists():
        return manifest
    rng = np.random.default_rng(seed)
    rows: list[tuple[str, str, str]] = []
    for split, many in (("train", count - count // 5), ("val", count // 5)):
        photos = sorted(path for path in (data / split).glob("*/*") if path.is_file())
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


def told(values: dict[str, Any], key: str) -> str:
    """A figure with its interval."""
    low, high = values[f"{key}_ci"]
    return f"{values[key]:.3f} ({low:.3f} to {high:.3f})"


def compare() -> None:
    """Print a line per result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--pictures", type=int, default=3000)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--tune-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--out", default="runs/collages", type=Path)
    options = parser.parse_args()
    manifest = collages(options.data, options.out / "pictures", options.pictures)
    common = ["finetune", "--data", str(manifest), "--backbone", "resnet18", "--weights", options.weights,
              "--store", str(options.out / "store")]  # fmt: skip
    jobs = {f"probe at {size} px": ["--phases", "probe", "--image-size", str(size)]
            for size in {options.image_size: 0, options.tune_size: 0}}  # fmt: skip
    jobs[f"probe-finetune at {options.tune_size} px"] = [
        "--phases", "probe-finetune", "--epochs", str(options.epochs), "--augment", "light", "--image-size",
        str(options.tune_size),
    ]  # fmt: skip
    for title, words in jobs.items():
        metrics = run([*common, *words], options.out / title.replace(" ", "-"))
        values = metrics["val"]
        print(
            f"{title:<26}val mAP {told(values, 'map')}, macro F1 {told(values, 'f1_macro')}, exact "
            f"{values['subset_acc']:.3f}, {metrics['time_s']:.0f} s",
            flush=True,
        )
        figures = json.loads(
            (options.out / title.replace(" ", "-") / "model.json").read_text(encoding="utf-8")
        )["calibration"]["figures"]  # fmt: skip
        print(f"{'':<26}macro F1 at 0.5 {figures['f1_before']:.3f}, at thresholds per label {figures['f1_after']:.3f} "
              "(thresholds and figure on the same pictures)", flush=True)  # fmt: skip
    print(against_scikit(manifest, options.weights, options.image_size, options.out / "store"))


if __name__ == "__main__":
    compare()
