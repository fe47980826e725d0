"""What `advise` foretells, beside what fine-tuning then gives: four candidates on photos of clothes.

    python tests/bench/advise.py --data clothing/ --weights resnet18.safetensors [--sizes 64 96] [--seeds 3]
        [--epochs 10] [--labels N] [--out runs/advise]

Candidates are resnet18 with these weights and the bundled backbone, each at every size. `val` of the data becomes the
test split, on which nothing is chosen; the val pictures of the runs are hashed out of train. Every candidate is
fine-tuned as the recipe of the advice says, with the backbone in its place. Prints a table, how well the ranking holds,
and what the advice cost beside the trainings that it saves. Finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

from harness import machine
from scipy.stats import kendalltau

from transferkit.cli.main import main
from transferkit.core.documents import parse_yaml


def manifest(data: Path, labels: int | None, out: Path) -> Path:
    """Write a manifest of the data: `train` as it is, or some pictures of each class, and `val` as test."""
    counts: Counter[str] = Counter()
    rows = []
    for split, name in (("train", "train"), ("val", "test")):
        files = [path for path in (data / split).glob("*/*") if path.is_file()]
        for path in sorted(files, key=lambda path: sha256(path.read_bytes()).hexdigest()):
            label = path.parent.name
            counts[f"{split} {label}"] += 1
            if split == "val" or labels is None or counts[f"{split} {label}"] <= labels:
                rows.append((path.relative_to(data).as_posix(), label, name))
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("path", "label", "split"), *rows])
    return out


def call(words: list[str]) -> None:
    """Run a verb; end with its status where it fails."""
    status = main(words)
    if status:
        raise SystemExit(status)


def advised(data: Path, table: Path, candidates: list[dict[str, Any]], out: Path, *, halving: bool) -> dict[str, Any]:
    """Return what `advise` writes down, with early dropping or without."""
    if not (out / "advice.json").exists():
        listed = out.parent / "candidates.json"
        listed.write_text(json.dumps(candidates), encoding="utf-8")
        store = str(out.parent / f"store-{out.name}")
        call(["advise", "--data", str(table), "--root", str(data), "--backbones", str(listed), "--out", str(out),
              "--store", store, "--halving", str(halving).lower()])  # fmt: skip
    advice: dict[str, Any] = json.loads((out / "advice.json").read_text(encoding="utf-8"))
    return advice


def tuned(recipe: Path, candidate: dict[str, Any], seed: int, epochs: int, run: Path) -> dict[str, Any]:
    """Return the metrics of a candidate that was fine-tuned as the recipe says."""
    if not (run / "metrics.json").exists():
        values = {**parse_yaml(recipe.read_text(encoding="utf-8")), **candidate, "epochs": epochs}
        own = run.parent / f"{run.name}.yaml"
        own.parent.mkdir(parents=True, exist_ok=True)
        own.write_text(json.dumps(values), encoding="utf-8")
        call(["finetune", "--config", str(own), "--seed", str(seed), "--split-seed", "0", "--out", str(run),
              "--store", str(run.parent / "store"), "--report", "off", "--quiet"])  # fmt: skip
    metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return metrics


def compare() -> None:
    """Ask for advice, fine-tune, and print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--labels", type=int, help="training pictures of a class; default: all")
    parser.add_argument("--out", type=Path, default=Path("runs/advise"))
    options = parser.parse_args()
    weights = str(Path(options.weights).resolve())
    networks = ({"backbone": "resnet18", "weights": weights}, {"backbone": "transferkit/mini", "weights": "bundled"})
    candidates = [{**network, "image_size": size} for network in networks for size in options.sizes]
    table = manifest(options.data, options.labels, options.out / "photos.csv")
    whole = advised(options.data, table, candidates, options.out / "whole", halving=False)
    early = advised(options.data, table, candidates, options.out / "halving", halving=True)
    named = {(row["backbone"], tuple(row["image_size"])): row for row in whole["candidates"]}
    foretold, reached, spent = [], [], 0.0
    print(f"{machine()}\n")
    print("| candidate | foretold: probe, cross-validated | LogME | images/s | fine-tuned: test, mean of "
          f"{options.seeds} | each seed | its probe on test | s |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    for candidate in candidates:
        size = candidate["image_size"]
        row = named[str(candidate["backbone"]), (size, size)]
        place = options.out / f"{str(candidate['backbone']).replace('/', '_')}-{size}"
        recipe = options.out / "whole" / "recipe.yaml"
        runs = [tuned(recipe, candidate, seed, options.epochs, place / str(seed)) for seed in range(options.seeds)]
        probe = tuned(recipe, {**candidate, "phases": "probe"}, 0, options.epochs, place / "probe")
        figure = row["figures"][0]
        accuracies = [run["test"]["acc"] for run in runs]
        foretold.append(figure["value"])
        reached.append(statistics.mean(accuracies))
        spent += sum(run["time_s"] for run in runs)
        low, high = figure["ci"]
        each = ", ".join(f"{acc:.1%}" for acc in accuracies)
        print(f"| {row['name']} | {figure['value']:.1%} ({low:.1%} to {high:.1%}) | {row['logme']:.3f} | "
              f"{row['cost']['images_per_s']:,.0f} | {reached[-1]:.1%} | {each} | "
              f"{probe['test']['acc']:.1%} | {sum(run['time_s'] for run in runs):.0f} |", flush=True)  # fmt: skip
    best = max(range(len(candidates)), key=foretold.__getitem__)
    print(f"\nKendall's tau of foretold and reached {kendalltau(foretold, reached).statistic:+.2f}; the one advised is "
          f"{100 * (max(reached) - reached[best]):.1f} points below the best one; advice {whole['time_s']:.0f} s, with "
          f"halving {early['time_s']:.0f} s, the trainings {spent:.0f} s")  # fmt: skip
    for row in early["candidates"]:
        print(
            f"with halving: {row['name']} {row['state']}, of {row['pictures']:,} pictures; {row['note'] or 'the first'}"
        )
    for name, sentence in whole["quadrants"]["sentences"].items():
        print(f"{name}: {sentence}")


if __name__ == "__main__":
    compare()
