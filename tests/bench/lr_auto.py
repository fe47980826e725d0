"""`--lr auto` against a grid of seven fixed LRs: the accuracy it reaches over the best of the grid.

    python tests/bench/lr_auto.py --data sample --backbone transferkit/mini --weights bundled [--epochs 5] [--seeds 1]
    python tests/bench/lr_auto.py --data clothing/ --backbone resnet18 --weights resnet18.safetensors --image-size 64

Accuracy is that of the best epoch on the validation split, for all alike. Finished runs under --out are not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from transferkit.cli.main import main

GRID = ("1e-5", "3e-5", "1e-4", "3e-4", "1e-3", "3e-3", "1e-2")


def measured(options: argparse.Namespace, lr: str, seed: int) -> tuple[float, float]:
    """Validation accuracy of one run, and the LR it used."""
    out = Path(options.out) / f"{Path(options.data).stem}-{lr}-{seed}"
    if not (out / "metrics.json").is_file():
        command = ["finetune", "--data", options.data, "--backbone", options.backbone, "--weights", options.weights]
        command += ["--epochs", str(options.epochs), "--lr", lr, "--seed", str(seed), "--out", str(out), "--quiet"]
        command += ["--image-size", str(options.image_size)] if options.image_size else []
        status = main([*command, *(["--overwrite"] if out.exists() else [])])
        if status:
            raise SystemExit(status)
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    plan = json.loads((out / "plan.json").read_text(encoding="utf-8"))
    return metrics["val"]["acc"], plan["phases"][-1]["lr"]


def run() -> None:
    """Print a line per LR, then the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", default="runs/lr_auto")
    options = parser.parse_args()
    means = {}
    for lr in ("auto", *GRID):
        runs = [measured(options, lr, seed) for seed in range(options.seeds)]
        means[lr] = statistics.mean(acc for acc, _ in runs)
        used = ", ".join(f"{found:.2g}" for _, found in runs) if lr == "auto" else ""
        print(f"{lr:<6}{means[lr]:.1%}  {used}", flush=True)
    best = max(GRID, key=means.__getitem__)
    print(f"auto over the best of the grid ({best}): {means['auto'] / means[best]:.3f}")


if __name__ == "__main__":
    run()
