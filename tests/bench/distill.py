"""Distillation against fine-tuning alone: a teacher, the small backbone without it, and with it by number of views.

    python tests/bench/distill.py OUT --data clothing/ --weights resnet18.safetensors
        [--backbone transferkit/mini] [--views 1 4 8] [--epochs 8] [--teacher-epochs 4] [--seeds 3] [--image-size 96]

The teacher is resnet18 from `weights`, fine-tuned once with the usual options. Students start from their own pretrained
weights and train for equal epochs; what differs between them is what they learn. Accuracy is of the epoch that val
chose, on val, where the data have no test split. Finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from harness import machine

from transferkit.cli.main import main as transferkit


def run(words: list[str], out: Path) -> dict[str, Any]:
    """Run a verb that writes a directory, once; return its metrics."""
    if not (out / "metrics.json").exists():
        status = transferkit([*words, "--out", str(out), "--overwrite", "--quiet", "--report", "off"])
        if status:
            raise SystemExit(status)
    return dict(json.loads((out / "metrics.json").read_text(encoding="utf-8")))


def accuracy(metrics: dict[str, Any]) -> float:
    """Return the accuracy of the split that says most, in per cent."""
    return 100 * float((metrics.get("test") or metrics["val"])["acc"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True, help="of the teacher, a resnet18")
    parser.add_argument("--backbone", default="transferkit/mini", help="of the student")
    parser.add_argument("--student-weights", default="bundled")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--views", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[2.0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--teacher-epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    store = ["--store", str(options.out / "store")]
    size = ["--data", options.data, "--image-size", str(options.image_size), "--split-seed", "0", *store]
    teacher = options.out / "teacher"
    first = run(["finetune", *size, "--backbone", "resnet18", "--weights", options.weights,
                 "--epochs", str(options.teacher_epochs)], teacher)  # fmt: skip
    print(f"{machine()}; teacher: resnet18, {accuracy(first):.1f} %, {first['time_s']:.0f} s\n")
    small = [*size, "--backbone", options.backbone, "--weights", options.student_weights, "--epochs",
             str(options.epochs), "--phases", "probe-finetune"]  # fmt: skip
    ways: dict[str, list[str]] = {"labels": ["finetune"]}
    for temperature in options.temperatures:
        for views in options.views:
            ways[f"teacher, {views} view{'s' if views > 1 else ''}, temperature {temperature:g}"] = [
                "distill", str(teacher), "--teacher-views", str(views), "--teacher-temperature", str(temperature),
            ]  # fmt: skip
    print(f"| {options.backbone} learns | accuracy, % | by seed | seconds of training |\n|---|---|---|---|")
    for name, words in ways.items():
        runs = [
            run(
                [*words, *small, "--seed", str(seed)],
                options.out / f"{name.replace(', ', '-').replace(' ', '_')}-{seed}",
            )
            for seed in range(options.seeds)
        ]
        values = [accuracy(metrics) for metrics in runs]
        seconds = statistics.fmean(float(metrics["time_s"]) for metrics in runs)
        spread = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        print(f"| {name} | {statistics.fmean(values):.1f}{spread} | {', '.join(f'{value:.1f}' for value in values)} | "
              f"{seconds:.0f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
