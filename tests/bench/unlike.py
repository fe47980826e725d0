"""Pictures that belong to no class: how well the distance, the largest probability and conformal sets tell them.

    python tests/bench/unlike.py --clothing clothing/ --weights resnet18.safetensors --others cells/ nuclei/

Seven classes are trained, three are held back, by the solved probe and by fine-tuning. Known pictures are the seven
classes' photos of `val`, which are the run's test split; nothing was chosen on them. A conformal set scores by how many
classes it holds, an empty one highest, since it says that no class fits; equal scores count half.
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import machine

import transferkit as tk
from transferkit.data.scan.named import find_pictures
from transferkit.models.unlike.figures import separation
from transferkit.results.predict.abstention import Abstention
from transferkit.results.predict.predictor import Predictor, load

HELD_BACK = 3
COVERAGE = 0.95


def manifest(clothing: Path, known: Sequence[str], path: Path, seed: int) -> None:
    """Write train and val of the known classes, 15 % of `train` drawn for val; `val` is the test split."""
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "label", "split"))
        for name in known:
            for file in sorted((clothing / "train" / name).iterdir()):
                writer.writerow((file.relative_to(clothing), name, "val" if draw.random() < 0.15 else "train"))
            for file in sorted((clothing / "val" / name).iterdir()):
                writer.writerow((file.relative_to(clothing), name, "test"))


def asked(predictor: Predictor, paths: Sequence[str]) -> dict[str, Any]:
    """Scores of pictures, each higher for what belongs to no class; and which pass: near, or a set of one class."""
    rule = Abstention(predictor.info, COVERAGE, "sets")
    distance, unsure, shares, sizes = [], [], [], []
    for output in predictor.outputs(paths):
        assert output.logits is not None and output.distance is not None and predictor.module.unlike is not None
        probs = predictor.probs(output.logits)
        distance.append(output.distance)
        shares.append(predictor.module.unlike.nearer(output.distance))
        unsure.append(1.0 - float(probs.max()))
        sizes.append(len(rule(probs, np.argsort(-probs, kind="stable"))[1]) or len(probs) + 1)
    return {"distance": np.array(distance), "unsure": np.array(unsure), "size": np.array(sizes),
            "near": np.array(shares) <= COVERAGE, "single": np.array(sizes) == 1}  # fmt: skip


def measured(run: Path, known: Sequence[str], others: dict[str, Sequence[str]]) -> dict[str, dict[str, list[float]]]:
    """By kind of other pictures and method: AUROC, FPR95, share of known and of other pictures that pass at 95 %."""
    predictor = load(run)
    own = asked(predictor, known)
    table: dict[str, dict[str, list[float]]] = {}
    for kind, paths in others.items():
        there = asked(predictor, paths)
        rows = {}
        for method, score, passes in (
            ("Mahalanobis++", "distance", "near"),
            ("largest probability", "unsure", None),
            ("conformal sets", "size", "single"),
        ):  # fmt: skip
            split = separation(own[score], there[score])
            rates = [float(side[passes].mean()) if passes else np.nan for side in (own, there)]
            rows[method] = [split["auroc"], split["fpr95"], *rates]
        table[kind] = rows
    return table


def printed(title: str, tables: Sequence[dict[str, dict[str, list[float]]]]) -> None:
    """Print means over runs, and the ranges of AUROC and FPR where there are several."""
    print(
        f"\n{title}\n| pictures | score | AUROC | FPR at 95 % TPR | known that pass | others that pass |\n"
        "|---|---|---|---|---|---|"
    )
    for kind, rows in tables[0].items():
        for method in rows:
            columns = list(zip(*(table[kind][method] for table in tables), strict=True))
            cells = ["" if np.isnan(column[0]) else f"{statistics.mean(column):.3f}" for column in columns]
            for at in range(2 if len(tables) > 1 else 0):
                cells[at] += f" ({min(columns[at]):.3f} to {max(columns[at]):.3f})"
            print(f"| {kind} | {method} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Train, ask and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clothing", required=True, type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--others", nargs="+", required=True)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--phases", nargs="+", default=("probe", "probe-finetune"))
    options = parser.parse_args()
    classes = sorted(path.name for path in (options.clothing / "train").iterdir())
    print(machine())
    tables: dict[str, list[dict[str, dict[str, list[float]]]]] = {phases: [] for phases in options.phases}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.draws):
            held = sorted(random.Random(seed).sample(classes, HELD_BACK))
            known = [name for name in classes if name not in held]
            data = Path(folder) / f"{seed}.csv"
            manifest(options.clothing.resolve(), known, data, seed)
            test = [str(file) for name in known for file in sorted((options.clothing / "val" / name).iterdir())]
            folders = [options.clothing / split / name for split in ("train", "val") for name in held]
            others = {"classes held back": [str(file) for place in folders for file in sorted(place.iterdir())]}
            others |= {name: list(find_pictures([name])) for name in options.others}
            for phases in options.phases:
                run = tk.finetune(
                    data=str(data), root=str(options.clothing), backbone="resnet18", weights=options.weights,
                    image_size=64, phases=phases, epochs=options.epochs, out=f"{folder}/{phases}-{seed}",
                    store=f"{folder}/store", report="off", quiet=True,
                )  # fmt: skip
                table = measured(run.path, test, others)
                facts = run.metrics["unlike_training"]
                title = (
                    f"{phases}, held back: {', '.join(held)}; test accuracy {run.metrics['test']['acc']:.1%}, "
                    f"kept {run.metrics['selection'].get('kept', 'the probe')}, "
                    f"{len(test)} known, {', '.join(f'{len(paths)} {kind}' for kind, paths in others.items())}; "
                    f"statistics of {facts['pictures']} pictures in "
                    f"{facts['time_s']:.1f} s of {run.metrics['time_s']:.0f} s, "
                    f"shrinkage {facts['shrinkage']:.4f}"
                )
                printed(title, [table])
                tables[phases].append(table)
    for phases, several in tables.items():
        if len(several) > 1:
            printed(f"{phases}, mean over {len(several)} draws of three classes", several)


if __name__ == "__main__":
    main()
