"""Numbers per picture on real photos: the solved probe beside scikit-learn, and beside what fine-tuning makes of it.

    python tests/bench/cells.py CELLS --weights resnet18.safetensors [--epochs 4] [--lr 3e-4] [--augment light]

CELLS holds `counts.csv` with columns `path,split,red,platelets`. Every row is RMSE on val, in cells, and the loss on
val in squared deviations of the training pictures.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

import transferkit as tk
from transferkit.core.csv import read_csv

TARGETS = ("red", "platelets")


def features(cells: Path, options: argparse.Namespace) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return features and numbers by split, the features by our extraction in fp32."""
    rows = read_csv(cells / "counts.csv")
    paths = [str(cells / row["path"]) for row in rows]
    extractor = tk.FeatureExtractor(
        "resnet18", weights=options.weights, image_size=options.image_size, precision="32", accelerator="cpu"
    )
    X = extractor.fit(paths).transform(paths).astype(np.float64)
    y = np.array([[float(row[name]) for name in TARGETS] for row in rows])
    splits = np.array([row["split"] for row in rows])
    return {split: (X[splits == split], y[splits == split]) for split in ("train", "val")}


def ridge(data: dict[str, tuple[np.ndarray, np.ndarray]], alphas: list[float]) -> tuple[list[float], float]:
    """Return the RMSE of each target, and the loss, of scikit-learn's `Ridge` behind its `StandardScaler`."""
    (X, y), (held, truth) = data["train"], data["val"]
    scaler, mean, scale = StandardScaler().fit(X), y.mean(axis=0), y.std(axis=0)
    off = np.stack(
        [Ridge(alpha=alpha).fit(scaler.transform(X), (y[:, at] - mean[at]) / scale[at]).predict(scaler.transform(held))
         - (truth[:, at] - mean[at]) / scale[at] for at, alpha in enumerate(alphas)], axis=1
    )  # fmt: skip
    return (np.sqrt(np.square(off).mean(axis=0)) * scale).tolist(), float(np.square(off).mean())


def line(name: str, rmse: list[float], loss: float | None, seconds: float | None = None) -> None:
    """Print a row."""
    told = "" if loss is None else f"{loss:.3f}"
    print(
        f"| {name} | {rmse[0]:.3f} | {rmse[1]:.3f} | {told} | {'' if seconds is None else f'{seconds:.0f} s'} |",
        flush=True,
    )


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cells", type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--losses", nargs="*", default=["mse"])
    parser.add_argument("--augment", default="light")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    common = {
        "data": str(options.cells / "counts.csv"), "targets": ",".join(TARGETS), "backbone": "resnet18",
        "weights": options.weights, "image_size": options.image_size, "probe_views": 0, "precision": "32",
        "accelerator": "cpu", "quiet": True, "report": "off", "augment": options.augment,
    }  # fmt: skip
    print("| | RMSE of red | RMSE of platelets | loss | time |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        run = tk.finetune(**common, phases="probe", seed=0, out=f"{folder}/probe")
        val, probe = run.metrics["val"], run.metrics["phases"][0]
        line("always the mean", [val["per_target"][name]["always_mean"]["rmse"] for name in TARGETS], None)
        line("solved probe", [val["per_target"][name]["rmse"] for name in TARGETS], val["loss"], probe["time_s"])
        line(
            "scikit-learn's ridge, same features and strengths",
            *ridge(features(options.cells, options), probe["alpha"]),
        )
        for loss in options.losses:
            for seed in range(options.seeds):
                started = time.perf_counter()
                run = tk.finetune(
                    **common, epochs=options.epochs, lr=options.lr, loss=loss, seed=seed, out=f"{folder}/{loss}-{seed}"
                )
                val = run.metrics["val"]
                epochs = [round(float(row["val_loss"]), 3) for row in read_csv(run.path / "history.csv")]
                way = f"probe-finetune, {loss}, --augment {options.augment}, seed {seed}"
                line(way, [val["per_target"][name]["rmse"] for name in TARGETS],
                     val["loss"], time.perf_counter() - started)  # fmt: skip
                print(f"<!-- val loss by epoch: {json.dumps(epochs)}; kept {run.metrics['selection']['kept']} -->")


if __name__ == "__main__":
    main()
