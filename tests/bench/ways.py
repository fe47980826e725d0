"""Ways to tune: full, bias, norm, LoRA, DoRA and the probe alone, for equal epochs over seeds.

    python tests/bench/ways.py --data clothing/ --weights resnet18.safetensors [--seeds 3] [--ways full lora]

Accuracy is that of the val pictures, by which the epoch was chosen too, so it is a little optimistic for all alike, and
that of the test pictures where there are any. The LRs are the house's for everything; what trains little takes the
larger one of --lr-small, for no way is at its best at another's. Seconds are of training and choosing, on a machine
that does nothing else. Bytes: what the way adds to the backbone's file, were only that saved, beside the product, which
is a plain network whatever the way. Finished runs under --out are not repeated. The table goes to --out/ways.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transferkit.cli.main import main

WAYS: dict[str, tuple[str, ...]] = {
    "full": ("--phases", "probe-finetune"),
    "bias": ("--phases", "probe-finetune", "--train", "bias"),
    "norm": ("--phases", "probe-finetune", "--train", "norm"),
    "lora": ("--phases", "probe-finetune", "--adapter", "lora"),
    "dora": ("--phases", "probe-finetune", "--adapter", "dora"),
    "probe": ("--phases", "probe", "--probe", "solve"),
}
USUAL = ("full", "bias", "norm", "lora", "probe")
SMALL = ("bias", "norm", "lora", "dora")


def measured(way: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one run."""
    out = Path(options.out) / f"{way}-{seed}"
    if not (out / "metrics.json").is_file():
        words = ["finetune", "--data", options.data, "--backbone", options.backbone, "--seed", str(seed)]
        words += ["--split-seed", "0", "--epochs", str(options.epochs), "--image-size", str(options.image_size)]
        words += ["--weights", options.weights, "--out", str(out), "--report", "off", "--quiet", *WAYS[way]]
        words += ["--lr", str(options.lr_small), "--layer-decay", "1.0"] if way in SMALL else []
        status = main([*words, *options.more, *(["--overwrite"] if out.exists() else [])])
        if status:
            raise SystemExit(status)
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    plan = json.loads((out / "plan.json").read_text(encoding="utf-8"))
    trained = max(phase["trainable_parameters"] for phase in plan["phases"])
    return {
        "val": metrics["val"]["acc"],
        "test": metrics.get("test", {}).get("acc"),
        "trained": trained,
        "seconds": metrics["time_s"],
        "delta_bytes": 4 * trained,
        "product_bytes": (out / "model.safetensors").stat().st_size,
        "kept": metrics["selection"].get("kept") or "the solved probe",
    }


def spread(values: Sequence[float], shape: str) -> str:
    """Mean and range."""
    return f"{statistics.mean(values):{shape}} ({min(values):{shape}} to {max(values):{shape}})"


def row(way: str, runs: Sequence[dict[str, Any]]) -> str:
    """A line of the table."""
    tests = [run["test"] for run in runs if run["test"] is not None]
    return " | ".join([
        f"| {way}", spread([run["val"] for run in runs], ".1%"), spread(tests, ".1%") if tests else "n/a",
        f"{runs[0]['trained']:,}", spread([run["seconds"] for run in runs], ".0f"),
        f"{runs[0]['delta_bytes'] / 1e6:.2f} MB", f"{runs[0]['product_bytes'] / 1e6:.1f} MB",
        f"{sum('probe' in run['kept'] for run in runs)} of {len(runs)} |",
    ])  # fmt: skip


def run() -> None:
    """Print a line as soon as a way's runs are done, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr-small", type=float, default=3e-3)
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=USUAL)
    parser.add_argument("--out", default="runs/ways")
    parser.add_argument("--more", nargs=argparse.REMAINDER, default=[])
    options = parser.parse_args()
    lines = [
        "| way | val accuracy | test accuracy | trained | seconds | trained, on disk | product | probe was best |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for way in options.ways:
        lines.append(row(way, [measured(way, seed, options) for seed in range(options.seeds)]))
        print(lines[-1], flush=True)
        Path(options.out, "ways.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run()
