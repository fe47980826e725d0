"""Accuracy of recipes over seeds: mean and range, as the table of recipes/README.md holds them.

    python tests/bench/recipes.py --data clothing/ --weights resnet18.safetensors [--seeds 3] [RECIPE.yaml ...]

Flags after the recipes go to every run, such as `-- --ema 0.99`. Finished runs under --out are not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from transferkit.cli.main import main

RECIPES = ("probe", "finetune", "probe_finetune", "gradual", "sgdr")


def measured(recipe: Path, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The metrics of one run."""
    words = "-".join(word.strip("-") for word in options.more)
    out = Path(options.out) / f"{recipe.stem}{'-' + words if words else ''}-{seed}"
    if not (out / "metrics.json").is_file():
        command = ["finetune", "--config", str(recipe), "--data", options.data, "--seed", str(seed), "--out", str(out)]
        command += ["--weights", options.weights] if options.weights else []
        status = main([*command, *options.more, "--quiet", *(["--overwrite"] if out.exists() else [])])
        if status:
            raise SystemExit(status)
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def told(values: list[float]) -> str:
    """Mean and range in percent."""
    return f"{statistics.mean(values):.1%} ({min(values):.1%} to {max(values):.1%})"


def run() -> None:
    """Print a line per recipe as soon as its runs are done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", default="runs/recipes")
    parser.add_argument("--more", nargs=argparse.REMAINDER, default=[])
    options = parser.parse_args()
    folder = Path(__file__).parents[2] / "recipes"
    for recipe in options.recipes or [folder / f"clothing_{name}.yaml" for name in RECIPES]:
        runs = [measured(recipe, options, seed) for seed in range(options.seeds)]
        line = f"{recipe.stem:<26}val {told([run['val']['acc'] for run in runs])}"
        if "snapshots" in runs[0]:
            line += f", snapshots together {told([run['snapshots']['val']['acc'] for run in runs])}"
        if "interpolation" in runs[0]:
            line += f", alpha {[run['interpolation']['alpha'] for run in runs]}"
        print(f"{line}, {statistics.mean(run['time_s'] for run in runs):.0f} s", flush=True)


if __name__ == "__main__":
    run()
